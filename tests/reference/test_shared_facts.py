"""The true facts of CounterFact, where they are at hand."""

from lit_edit.reference.data import FactsData


def test_counterfacts_facts_are_all_read(shared):
    found = FactsData(str(shared / "data")).read()
    assert len(found.facts) == 21223 and len(found.subjects()) == 20391 and len(found.templates) == 34
    assert all(fact.edited for fact in found.facts)
    assert sum(len(templates) for templates in found.templates.values()) > 200
