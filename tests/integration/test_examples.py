"""Every file in examples/ runs, and so does what the README shows."""

import re
import runpy
import sys
from pathlib import Path

import pytest

# app_client.py wants a server: test_app_http.py runs it.
EXAMPLES = sorted(path for path in (Path(__file__).parents[2] / "examples").glob("*.py") if path.stem != "app_client")


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_runs_and_writes_its_pictures(example, tmp_path, monkeypatch, quick_fast):
    monkeypatch.setattr(sys, "argv", [str(example), str(tmp_path)])
    runpy.run_path(str(example), run_name="__main__")
    assert (tmp_path / "run.json").is_file()
    assert list(tmp_path.glob("*.png"))


def test_the_readme_runs_as_it_is_printed(tmp_path, monkeypatch, one_prior, quick_fast):
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(
        r"```python\n(.*?)```", (EXAMPLES[0].parents[1] / "README.md").read_text(encoding="utf-8"), re.S
    )
    exec(compile(code, "README.md", "exec"), {})
    assert (tmp_path / "restored" / "astronaut.png").is_file()
    assert (tmp_path / "restored" / "run.json").is_file()
