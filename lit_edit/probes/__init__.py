"""General-ability probes."""

from lit_edit.probes.base import AnswerProbe, Probe
from lit_edit.probes.choice import LabelTask
from lit_edit.probes.downstream import Entailment, GenerationTask, OpenDomainQA, Reasoning, Summarisation
from lit_edit.probes.glue import MMLU, MRPC, NLI, RTE, SST2, CoLA
from lit_edit.probes.harness import LMEval
from lit_edit.probes.perplexity import Perplexity
from lit_edit.probes.unedited import UneditedFacts
from lit_edit.probes.world import WorldSkill, WorldUnrelated

__all__ = [
    "MMLU",
    "MRPC",
    "NLI",
    "RTE",
    "SST2",
    "AnswerProbe",
    "CoLA",
    "Entailment",
    "GenerationTask",
    "LMEval",
    "LabelTask",
    "OpenDomainQA",
    "Perplexity",
    "Probe",
    "Reasoning",
    "Summarisation",
    "UneditedFacts",
    "WorldSkill",
    "WorldUnrelated",
]
