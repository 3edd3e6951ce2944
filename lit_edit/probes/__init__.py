"""General-ability probes."""

from lit_edit.probes.base import AnswerProbe, Probe
from lit_edit.probes.perplexity import Perplexity
from lit_edit.probes.world import WorldSkill, WorldUnrelated

__all__ = ["AnswerProbe", "Perplexity", "Probe", "WorldSkill", "WorldUnrelated"]
