"""The workflows call what is there, may do no more than they must, and take actions by their content."""

import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[3]
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


@pytest.fixture(params=WORKFLOWS, ids=[path.stem for path in WORKFLOWS])
def workflow(request):
    return yaml.safe_load(request.param.read_text())


def steps(workflow):
    return [step for job in workflow["jobs"].values() for step in job["steps"]]


def test_every_step_takes_an_action_by_its_commit_or_runs_what_exists(workflow):
    for step in steps(workflow):
        if "uses" in step:
            assert re.fullmatch(r"[\w./-]+@[0-9a-f]{40}", step["uses"])
        for target in re.findall(r"\bmake ([a-z-]+)", step.get("run", "")):
            assert target in TARGETS
        for name in re.findall(r"\bbash (\S+)", step.get("run", "")):
            assert (ROOT / name).is_file()


def test_every_job_ends_and_may_read_at_most_unless_it_says_so(workflow):
    assert workflow["permissions"] == {"contents": "read"}
    for job in workflow["jobs"].values():
        assert 0 < job["timeout-minutes"] <= 180
        if "permissions" in job:  # nothing of others runs in it before an environment lets it
            assert job["environment"]


def test_what_is_published_is_what_a_release_makes():
    release = yaml.safe_load((ROOT / ".github/workflows/release.yml").read_text())
    names = release["jobs"]["publish"]["strategy"]["matrix"]["distribution"]
    page = (ROOT / "docs/reference/release_artifacts.md").read_text()
    for name in names:
        assert f"`{name}-<version>-py3-none-any.whl`" in page
        assert f"`{name}-<version>.tar.gz`" in page


def test_folders_that_are_kept_fresh_have_something_to_keep():
    for each in yaml.safe_load((ROOT / ".github/dependabot.yml").read_text())["updates"]:
        for folder in each.get("directories", [each.get("directory")]):
            names = {path.name for path in (ROOT / folder.strip("/")).iterdir()}
            files = {
                "pip": r".*\.txt|pyproject\.toml",
                "npm": r"package\.json",
                "github-actions": r"\.github",
            }
            assert [name for name in names if re.fullmatch(files[each["package-ecosystem"]], name)], folder
