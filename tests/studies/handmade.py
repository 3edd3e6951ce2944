"""Results of stream studies that were made by hand, and the studies that they are results of."""

import torch

from lit_edit.studies.collapse import Collapse
from lit_edit.studies.condition import Condition
from lit_edit.studies.methods import Methods
from lit_edit.studies.order import Order
from lit_edit.studies.pareto import Pareto
from lit_edit.studies.spectra import Spectra
from lit_edit.studies.tau import Tau

GUARD = [{"class_path": "REVIVE", "init_args": {"tau": 0.2}}]


def made(about, skills=((0, 1.0), (10, 0.8), (20, 0.4)), efficacy=0.9, unrelated=0.6, perplexity=(10.0, 20.0), **extra):
    """A result as :func:`lit_edit.studies.told.told` gives it."""
    edits = [at for at, _ in skills]
    last = edits[-1]
    scores = {f"{m}/success/teacher_forced": [[0, 0.0], [last, efficacy]] for m in ("efficacy", "paraphrase", "neighbourhood")}
    layers = {
        f"drift/{name}/layer_{layer}": [[at, value + layer] for at in edits[1:]]
        for layer in (0, 1)
        for name, value in (("relative_norm", 2.0), ("condition_number", 30.0), ("delta_norm", 4.0), ("ls", 0.0), ("ss", 0.0))
    }
    return {
        "about": about,
        "edits": last,
        "intervals": {"edit/final/efficacy/success/teacher_forced": [0.85, 0.95]},
        "changes": {"probe/unrelated_facts/accuracy/teacher_forced": [-0.5, -0.3], "probe/copying/accuracy/x": [-0.7, -0.5]},
        "probes": {
            "copying": {"shown": "probe/copying/accuracy/x", "higher_is_better": True},
            "text": {"shown": "probe/text/perplexity", "higher_is_better": False},
            "unrelated_facts": {"shown": "probe/unrelated_facts/accuracy/teacher_forced", "higher_is_better": True},
        },
        "validations": {
            **scores,
            "probe/copying/accuracy/x": [list(pair) for pair in skills],
            "probe/text/perplexity": [[0, perplexity[0]], *([at, perplexity[1]] for at in edits[1:])],
            "probe/unrelated_facts/accuracy/teacher_forced": [[0, 1.0], [last, unrelated]],
        },
        "undefined": {},
        "batches": layers,
        **extra,
    }


def collapse_results():
    sound = ((0, 1.0), (10, 1.0), (20, 0.9))
    about = [{"method": method, "seed": seed} for method in ("MEMIT", "MEMIT + REVIVE") for seed in (0, 1)]
    calm = {"perplexity": (10.0, 10.0)}
    return {
        "a": made(about[0], perplexity=(10.0, 40.0), efficacy=0.8),
        "b": made(about[1], skills=((0, 1.0), (10, 0.3), (20, 0.1)), perplexity=(10.0, 40.0), efficacy=0.6),
        "c": made(about[2], skills=sound, **calm),
        "d": made(about[3], perplexity=(10.0, 40.0)),
    }


def pareto_study(base):
    guards = {"no guard": None, "REVIVE": GUARD, "random": GUARD}
    return Pareto(base, [1.0, 10.0, 100.0], guards, seeds=[0, 1, 2], options={"data.seed": "$seed"})


def pareto_results(study, gain):
    results = {}
    for arm in study.arms():
        step = {1.0: 0, 10.0: 1, 100.0: 2}[arm.about["lam"]]
        efficacy, kept = 0.9 - 0.1 * step, 0.4 + 0.2 * step + 0.01 * arm.about["seed"]
        more = {"no guard": 0.0, "REVIVE": gain, "random": -0.02}[arm.about["guard"]]
        skills = ((0, 1.0), (20, kept + more))
        results[arm.key] = made(arm.about, skills, efficacy, kept + more, perplexity=(10.0, 10.0))
    return results


def spectra_study(base):
    models = {"flat": {"model.pretrained": "a"}, "steep": {"model.pretrained": "b"}}
    return Spectra(
        base, models, [1.0, 10.0], {"no guard": None, "REVIVE": GUARD}, seeds=[0, 1, 2], options={"data.seed": "$seed"}
    )


def spectra_results(study):
    """The guard keeps a tenth more of the steep model, and nothing more of the flat one."""
    results = {}
    for arm in study.arms():
        steep, weak = arm.about["model"] == "steep", arm.about["lam"] == 10.0
        kept = 0.4 + 0.2 * weak + 0.1 * (steep and arm.about["guard"] == "REVIVE")
        skills, share = ((0, 1.0), (20, kept)), 0.4 if steep else 0.1
        results[arm.key] = made(arm.about, skills, 0.8 if weak else 0.9, kept, perplexity=(10.0, 10.0), leading_share=share)
    return results


def methods_study(base):
    methods = {"MEMIT": {}, "RECT": {"model.guards": [{"class_path": "RECT"}]}}
    return Methods(base, methods, {"no guard": [], "REVIVE": GUARD}, seeds=[0, 1, 2], options={"data.seed": "$seed"})


def methods_results(study):
    """The guard costs a tenth of the efficacy and keeps a fifth more, of RECT a little less for every seed."""
    results = {}
    for arm in study.arms():
        about, guarded = arm.about, arm.about["guard"] == "REVIVE"
        less = 0.01 * about["seed"] if about["base_method"] == "RECT" else 0.0
        more = 0.2 - less if guarded else 0.0
        results[arm.key] = made(about, ((0, 1.0), (20, 0.4 + more)), 0.9 - 0.1 * guarded, 0.6 + more, seconds_per_edit=0.1)
    return results


def order_study(base):
    return Order(base, {"MEMIT": {}, "MEMIT + REVIVE": {"model.guards": GUARD}}, [0, 1])


def tau_study(base):
    return Tau(base, [0.1, 0.3], {"tau": 0.1, "basis": "full"}, {"compact": {"basis": "compact"}})


def coloured(picture, colour) -> int:
    """Pixels of a colour."""
    pixels = torch.frombuffer(bytearray(picture.convert("RGB").tobytes()), dtype=torch.uint8).view(-1, 3).int()
    wanted = torch.tensor([int(colour[at : at + 2], 16) for at in (1, 3, 5)])
    return int(((pixels - wanted).abs().amax(1) < 12).sum())


FIGURES = {
    "collapse": lambda base: Collapse(base, {"MEMIT": {}, "MEMIT + REVIVE": {}}),
    "condition": lambda base: Condition(base, {"MEMIT": {}, "MEMIT + REVIVE": {}}),
    "methods": methods_study,
    "order": order_study,
    "pareto": pareto_study,
    "spectra": spectra_study,
    "tau": tau_study,
}


def results_for(name, study):
    if name == "pareto":
        return pareto_results(study, 0.05)
    if name == "spectra":
        return spectra_results(study)
    if name == "methods":
        return methods_results(study)
    if name == "tau":
        return {arm.key: made(arm.about, efficacy=0.5 + 0.1 * at) for at, arm in enumerate(study.arms())}
    return collapse_results()
