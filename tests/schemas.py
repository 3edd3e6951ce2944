"""One valid row of every known schema, with everything that the schema can hold."""

from lit_edit.data import CounterFact, EasyEdit, JsonLines, MQuAKE, QAEdit, ZsRE

REWRITE = {
    "prompt": "{} is in",
    "subject": "Ann",
    "relation_id": "P1",
    "question": "Where is Ann?",
    "target_new": {"str": "Rome"},
    "target_true": {"str": "Oslo"},
}
ROWS = {
    CounterFact: {
        "case_id": 1,
        "requested_rewrite": REWRITE,
        "paraphrase_prompts": ["Ann lives in"],
        "neighborhood_prompts": ["Bob is in"],
        "generation_prompts": ["Ann likes"],
    },
    MQuAKE: {
        "case_id": 1,
        "requested_rewrite": [REWRITE],
        "questions": ["In which country is Ann?"],
        "new_answer": "Italy",
        "new_answer_alias": ["IT"],
        "new_single_hops": [{"question": "Where is Rome?", "cloze": "Rome is in", "answer": "Italy"}],
    },
    EasyEdit: {
        "prompt": "Ann is in",
        "subject": "Ann",
        "target_new": "Rome",
        "ground_truth": "Oslo",
        "rephrase_prompt": "Ann lives in",
        "locality_prompt": "Bob is in",
        "locality_ground_truth": "Bonn",
        "portability": {"Reasoning": [{"prompt": "Ann's country is", "ground_truth": [["Italy", "IT"]]}]},
        "locality": {"Forgetfulness": [{"prompt": "Ann's mother is", "ground_truth": [["Eve"]]}]},
    },
    ZsRE: {
        "subject": "Ann",
        "src": "Where is Ann?",
        "rephrase": "In which town is Ann?",
        "answers": ["Rome"],
        "alt": "Oslo",
        "loc": "nq question: where is Bob",
        "loc_ans": "Bonn",
    },
    QAEdit: {
        "id": 1,
        "source": "NQ",
        "prompt": "where is Ann?",
        "subject": "Ann",
        "target": "Rome",
        "rephrase": "Ann's place?",
        "locality": [{"loc": "where is Bob", "loc_ans": "Bonn"}],
    },
    JsonLines: {
        "prompt": "{} is in",
        "subject": "Ann",
        "target": "Rome",
        "target_true": "Oslo",
        "paraphrases": ["Ann lives in"],
        "neighbourhood": [["Bob is in", "Bonn"]],
        "case_id": "a",
        "relation": "P1",
        "portability": [["reasoning", "Ann's country is", ["Italy"]]],
        "locality": [["forgetfulness", "Ann's mother is", "Eve"]],
        "generation_prompts": ["Ann likes"],
    },
}
PATHS = {  # of the subject, the new target and the prompt
    CounterFact: ("requested_rewrite.subject", "requested_rewrite.target_new.str", "requested_rewrite.prompt"),
    MQuAKE: ("requested_rewrite[0].subject", "requested_rewrite[0].target_new.str", "requested_rewrite[0].prompt"),
    EasyEdit: ("subject", "target_new", "prompt"),
    ZsRE: ("subject", "answers[0]", "src"),
    QAEdit: ("subject", "target", "prompt"),
    JsonLines: ("subject", "target", "prompt"),
}
MEASURES = {  # besides the fact itself: what a row may do without
    CounterFact: {"case_id", "paraphrase_prompts", "neighborhood_prompts", "generation_prompts"},
    MQuAKE: {"case_id", "questions", "new_answer", "new_answer_alias", "new_single_hops"},
    EasyEdit: {"ground_truth", "rephrase_prompt", "locality_prompt", "locality_ground_truth", "portability", "locality"},
    ZsRE: {"rephrase", "alt", "loc", "loc_ans"},
    QAEdit: {"id", "source", "rephrase", "locality"},
    JsonLines: set(ROWS[JsonLines]) - {"prompt", "subject", "target"},
}
