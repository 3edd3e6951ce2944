"""The pages as they are built: nothing is fetched, formulas are drawn. What builds them needs the extra ``docs``."""

import importlib.util
import re
import subprocess
import sys

import pages
import pytest

SITE = pages.ROOT / "docs" / "site"


def test_what_pages_are_dressed_with_lies_beside_them():
    text = (pages.ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    named = re.findall(r"\bassets/([\w.-]+)", text)
    assert sorted(named) == sorted(path.name for path in SITE.iterdir() if path.suffix in (".js", ".css"))
    hooks = (SITE / "hooks.py").read_text(encoding="utf-8")
    assert all(f'"{name}"' in hooks for name in named)
    assert "iframe-worker.js" in named, "the generator would have every page fetch one from elsewhere"


@pytest.fixture(scope="module")
def hooks():
    pytest.importorskip("mkdocs")
    pytest.importorskip("latex2mathml")
    spec = importlib.util.spec_from_file_location("site_hooks", SITE / "hooks.py")
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


def drawn(hooks, formula):
    return hooks.on_page_content(f'<span class="arithmatex">\\({formula}\\)</span>')


def test_formulas(hooks):
    assert "\\" not in drawn(hooks, r"a \le \text{per\_batch}")
    sized = drawn(hooks, r"\big(A + B\big)^{-1}")
    assert "maxsize" not in sized and sized.count("(</mo>") == 1
    space = r'<mspace width="0\.167em"></mspace>'
    assert re.search(rf"<mi>B</mi>{space}<mi>ln</mi>{space}<mn>2</mn>", drawn(hooks, r"B \ln 2"))
    assert re.search(rf"<msub><mi>log</mi><mn>2</mn></msub>{space}<mi>f</mi>", drawn(hooks, r"\log_2 f"))
    assert "mspace" not in drawn(hooks, r"\exp(x)") and "mspace" not in drawn(hooks, r"a b_i")


@pytest.mark.slow
def test_a_built_page_fetches_nothing(tmp_path):
    for name in ("mkdocs", "material", "mkdocstrings", "latex2mathml"):
        pytest.importorskip(name)
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "-d", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=pages.ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    built = {path.relative_to(tmp_path / "site"): path.read_text(encoding="utf-8") for path in tmp_path.rglob("*.html")}
    assert len(built) > 40
    for path, text in built.items():
        fetched = re.findall(r'<(?:script|img|iframe)\b[^>]*\bsrc="(https?:[^"]+)"', text)
        fetched += re.findall(r'<link\b[^>]*rel="(?:stylesheet|preconnect|icon)"[^>]*href="(https?:[^"]+)"', text)
        assert not fetched, path
        assert not [formula for formula in re.findall(r"<math .*?</math>", text, re.DOTALL) if "\\" in formula], path
    assert (tmp_path / "site" / "assets" / "iframe-worker.js").exists() and (tmp_path / "site" / "assets" / "site.css").exists()
