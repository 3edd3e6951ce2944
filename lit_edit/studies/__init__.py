"""The experiments of spectral characterisation, each as one command with a table and a figure."""

STUDIES = {
    "truncate": "lit_edit.studies.truncate.Truncate",
    "perturb": "lit_edit.studies.perturb.Perturb",
    "withhold": "lit_edit.studies.withhold.Withhold",
    "collapse": "lit_edit.studies.collapse.Collapse",
    "methods": "lit_edit.studies.methods.Methods",
    "pareto": "lit_edit.studies.pareto.Pareto",
    "spectra": "lit_edit.studies.spectra.Spectra",
    "condition": "lit_edit.studies.condition.Condition",
    "tau": "lit_edit.studies.tau.Tau",
    "order": "lit_edit.studies.order.Order",
}
"""Studies by their name on the command line; any other import path works as well."""
