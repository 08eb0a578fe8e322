"""The documents hold true: Python blocks run, commands parse, links and pictures are there."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import yaml
from typer.main import get_command

from featherface.cli import app

ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "featherface" / "examples" / "astronaut.jpg"
DOCUMENTS = sorted(
    path
    for pattern in ("*.md", "docs/**/*.md", "featherface/**/*.md")
    for path in ROOT.glob(pattern)
)
# A block that cannot run here says why: <!-- not run: needs a camera --> on the line before it.
BLOCK = re.compile(
    r"(?P<skip><!-- not run: [^>]+ -->\n\s*)?^(?P<indent> *)```(?P<language>\w+)[^\n]*\n"
    r"(?P<body>.*?)^ *```",
    re.DOTALL | re.MULTILINE,
)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)[^)]*\)")
PLACES = ("photos", "data/masks", "data/train")


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def blocks(path: Path, *languages: str) -> list[str]:
    """The bodies of the fenced blocks in these languages, those marked "not run" left out."""
    found = []
    for match in BLOCK.finditer(path.read_text(encoding="utf-8")):
        if match["language"] in languages and not match["skip"]:
            indent = len(match["indent"])
            found.append("\n".join(line[indent:] for line in match["body"].splitlines()))
    return found


def with_blocks(*languages: str) -> list[Path]:
    return [path for path in DOCUMENTS if blocks(path, *languages)]


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files that the documents name."""
    pytest.importorskip("torch")
    from featherface.data.example_data import make_example_data

    folder = tmp_path_factory.mktemp("desk")
    example = make_example_data(folder / "example", photos=8, measured=3)
    (folder / "data").mkdir()
    shutil.copytree(example / "train", folder / "data" / "train")
    shutil.copytree(example / "labelled", folder / "data" / "masks")
    shutil.copytree(example / "labelled" / "images", folder / "photos")
    for name in ("group", "photo", "crowd", "a", "b"):
        shutil.copy(EXAMPLE, folder / f"{name}.jpg")
    return folder


@pytest.mark.parametrize("path", with_blocks("python"), ids=name_of)
def test_python_blocks_run(path: Path, desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The blocks of one document run in order, in one namespace."""
    monkeypatch.chdir(desk)
    shutil.rmtree(desk / "shards", ignore_errors=True)
    namespace: dict[str, object] = {"__name__": "__main__"}
    for number, body in enumerate(blocks(path, "python")):
        exec(compile(body, f"{name_of(path)}, block {number}", "exec"), namespace)


def command_lines(path: Path) -> list[list[str]]:
    """The arguments of every line that calls featherface."""
    lines = []
    for body in blocks(path, "sh", "bash", "shell", "console"):
        for line in body.replace("\\\n", " ").splitlines():
            for part in re.split(r"&&|\|", line):
                words = shlex.split(part, comments=True)
                if words and Path(words[0]).name == "featherface":
                    lines.append(words[1:])
    return lines


@pytest.mark.parametrize("path", with_blocks("sh", "bash", "shell", "console"), ids=name_of)
def test_commands_parse(path: Path) -> None:
    """Every command exists and knows the options that the document gives it."""
    for words in command_lines(path):
        command = get_command(app)
        rest = list(words)
        context = command.make_context("featherface", [], resilient_parsing=True)
        while hasattr(command, "commands") and rest and not rest[0].startswith("-"):
            assert rest[0] in command.commands, f"no command `featherface {' '.join(words)}`"
            command = command.commands[rest.pop(0)]
            context = type(context)(command, parent=context, info_name=command.name)
        try:
            command.make_parser(context).parse_args(rest)
        except Exception as error:
            pytest.fail(f"{name_of(path)}: featherface {' '.join(words)}: {error}")
        for option, value in pairwise(words):
            if option in ("--config", "-c") and value.startswith("configs/"):
                known = (ROOT / value).is_file() or value == "configs/mine.yaml"
                assert known, f"{value} is not there"


@pytest.mark.parametrize("path", with_blocks("yaml"), ids=name_of)
def test_yaml_blocks_are_configurations(path: Path) -> None:
    """A run that a document shows is one that the trainer would take."""
    config = pytest.importorskip("featherface.training.config")
    for body in blocks(path, "yaml"):
        values = yaml.safe_load(body)
        if set(values) <= set(config.RunConfig.model_fields):
            config.RunConfig.model_validate(values)


def slug(heading: str) -> str:
    """The anchor of a heading, as GitHub and MkDocs make it."""
    plain = re.sub(r"[`*]|\[([^\]]*)\]\([^)]*\)", r"\1", heading)
    return re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", plain.lower()).strip())


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_links_and_pictures_are_there(path: Path) -> None:
    text = re.sub(r"```.*?```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in LINK.findall(text):
        if re.match(r"[a-z]+:", target):
            continue
        place, _, anchor = target.partition("#")
        file = (path.parent / place).resolve() if place else path
        assert file.exists(), f"{name_of(path)} links to {target}, which is not there"
        if anchor and file.suffix == ".md":
            headings = re.findall(r"^#+ (.+)$", file.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in map(slug, headings), f"{name_of(path)}: no heading for {target}"


def test_site_builds_without_a_warning(tmp_path: Path) -> None:
    for module in ("mkdocs", "material", "mkdocstrings"):
        pytest.importorskip(module)
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "-q", "-d", str(tmp_path / "site")],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    page = (tmp_path / "site" / "reference" / "detector" / "index.html").read_text()
    assert "FaceDetector" in page


def test_architecture_pictures_are_of_the_models(tmp_path: Path) -> None:
    """The pictures in docs/images are what `featherface diagram` draws today."""
    pytest.importorskip("torch")
    import cv2

    from featherface.analysis.diagram import save_diagram
    from featherface.models.featherface_v1 import FeatherFaceV1
    from featherface.models.pretrained_v2 import load_v2

    for model, name in ((load_v2(), "architecture"), (FeatherFaceV1(), "architecture_v1")):
        drawn = cv2.imread(str(save_diagram(model, tmp_path / f"{name}.png")))
        kept = cv2.imread(str(ROOT / "docs" / "images" / f"{name}.png"))
        assert drawn.shape == kept.shape
        # Fonts differ a little from machine to machine; another network differs in whole boxes.
        assert np.abs(drawn.astype(int) - kept).mean() < 4, "run featherface diagram again"
