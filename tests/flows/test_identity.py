"""Equal work is found and different work never: the meaning of the code counts, not where or how it is written."""

import ast
import inspect
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flows.identity.code import ROOT, judging_entries, training_entries
from flows.identity.meaning import READ, Key, Sources
from flows.identity.reach import Code, code_of
from flows.training.attempt import train
from flows.training.ranks import Ranks
from flows.training.run_folder import RunFolder
from tests.flows.modalities_kit import prose, text_folder
from tests.flows.training_kit import prepare, spec_of

FAMILIES = {
    "ddpm": "image",
    "vae": "image",
    "attribute-judge": "image",
    "gpt": "text",
    "wavenet": "audio",
}
LOOP = "flows/training/loop.py"
Edit = Callable[["Tree"], None]


class Tree:
    """A copy of our sources that a test may change."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def replace(self, file: str, *pairs: tuple[str, str]) -> None:
        path = self.root / file
        text = path.read_text()
        for old, new in pairs:
            assert old in text, f"{file} has no {old!r}"
            text = text.replace(old, new)
        path.write_text(text)

    def everywhere(self, old: str, new: str) -> None:
        for path in self.root.rglob("*.py"):
            if old in (text := path.read_text()):
                path.write_text(re.sub(rf"\b{re.escape(old)}\b", new, text))

    def rename(self, old: str, new: str) -> None:
        (self.root / new).parent.mkdir(exist_ok=True)
        (self.root / old).rename(self.root / new)
        above, _, name = _dotted(old).rpartition(".")
        beside, _, other = _dotted(new).rpartition(".")
        self.everywhere(f"{above}.{name}", f"{beside}.{other}")
        if above == beside:  # from models.judges import metrics as m
            self.everywhere(f"from {above} import {name} as", f"from {above} import {other} as")

    def codes(self, *families: str) -> dict[str, Code]:
        sources = Sources(self.root)
        return {
            family: code_of(sources, training_entries(sources, family, FAMILIES[family]))
            for family in families or FAMILIES
        }

    def judging(self, family: str) -> str:
        sources = Sources(self.root)
        return code_of(sources, judging_entries(sources, [family], FAMILIES[family])).digest


def _dotted(file: str) -> str:
    return file.removesuffix(".py").replace("/", ".")


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    for package in READ:
        for path in (ROOT / package).rglob("*.py"):
            copy = tmp_path / path.relative_to(ROOT)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)
    return Tree(tmp_path)


@pytest.fixture(scope="module")
def before() -> dict[str, Code]:
    return Tree(ROOT).codes()


def changed(before: dict[str, Code], tree: Tree, *families: str) -> set[str]:
    now = tree.codes(*families)
    return {family for family, code in now.items() if before[family].digest != code.digest}


def moved(tree: Tree) -> None:
    """`rate_at`, from the optimizers to a module of its own."""
    path = tree.root / "flows/training/optimizers.py"
    text = path.read_text()
    node = next(
        one
        for one in ast.parse(text).body
        if isinstance(one, ast.FunctionDef) and one.name == "rate_at"
    )
    source = ast.get_source_segment(text, node)
    assert source is not None
    path.write_text(text.replace(source, ""))
    stay = [name for name in Sources(ROOT).names("flows.training.optimizers") if name != "rate_at"]
    head = f"import math\nfrom flows.training.optimizers import {', '.join(stay)}\n\n"
    (tree.root / "flows/training/schedule.py").write_text(head + source)
    tree.replace(
        LOOP,
        ("Average, clip, rate_at", "Average, clip"),
        ("from pathlib", "from flows.training.schedule import rate_at\nfrom pathlib"),
    )


WORDS = '"""One attempt at a training, on one rank."""'


def laid_out_anew(tree: Tree) -> None:
    for path in (tree.root / "models").rglob("*.py"):
        path.write_text(ast.unparse(ast.parse(path.read_text())))


def spelled_otherwise(tree: Tree) -> None:
    usual, other = "from torch.nn import functional as F", "import torch.nn.functional as fn"
    tree.replace("models/variational/vae.py", (usual, other), ("F.", "fn."))


REWRITTEN = {
    "a comment": (LOOP, "import math\n", "import math  # why\n"),
    "a docstring": (LOOP, WORDS, '"""Other words."""'),
    "imports in another order": (LOOP, "import math\nimport time\n", "import time\nimport math\n"),
    "annotations": ("models/diffusion/samplers.py", "-> Tensor:", "-> torch.Tensor:"),
    "the words of an error": ("flows/training/rows.py", "must be a multiple", "is no multiple"),
    "a new family": ("models/__init__.py", '"aae":', '"new": "models.new:New",\n    "aae":'),
}
RENAMED = {
    "flows/training/gradients.py": "flows/training/summed.py",
    "models/parts/draws.py": "models/parts/rolls.py",
    "models/diffusion/ddpm.py": "models/pixels/flow.py",
    "data/reading/splits.py": "data/dataset.py",
}
HARMLESS: dict[str, Edit] = {
    **{what: lambda t, e=edit: t.replace(e[0], e[1:]) for what, edit in REWRITTEN.items()},
    **{f"{old} renamed": lambda t, a=old, b=new: t.rename(a, b) for old, new in RENAMED.items()},
    "a function in another module": moved,
    "a class renamed": lambda t: t.everywhere("Gradients", "SummedGradients"),
    "laid out anew": laid_out_anew,
    "imports spelled otherwise": spelled_otherwise,
}


@pytest.mark.parametrize("edit", HARMLESS.values(), ids=HARMLESS)
def test_what_changes_no_number_changes_no_identity(
    before: dict[str, Code], tree: Tree, edit: Edit
) -> None:
    edit(tree)
    assert not changed(before, tree, "ddpm", "vae", "gpt")


@pytest.mark.parametrize(
    ("file", "old", "new", "family"),
    [
        ("models/variational/vae.py", "log_var_BZ / 2", "log_var_BZ / 3", "vae"),
        ("models/diffusion/ddpm.py", "alpha * x0 + sigma * eps", "alpha * x0 - sigma * eps", "ddpm"),
        ("models/language/gpt.py", "F.cross_entropy", "F.nll_loss", "gpt"),
        ("models/judges/attribute_judge.py", "F.cross_entropy", "F.nll_loss", "attribute-judge"),
    ],
)  # fmt: skip
def test_another_loss_is_other_work_for_its_family_alone(
    before: dict[str, Code], tree: Tree, file: str, old: str, new: str, family: str
) -> None:
    tree.replace(file, (old, new))
    assert changed(before, tree) == {family}


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("flows/training/optimizers.py", "(1 + step) / (10 + step)", "(1 + step) / (9 + step)"),
        ("flows/training/rows.py", "rules.batch_size // world", "rules.batch_size"),
        ("flows/training/loop.py", "torch.manual_seed(heard(spec.seed))", "torch.manual_seed(0)"),
        ("flows/training/turns.py", ".clamp(min=1)", ".clamp(min=2)"),
        ("flows/training/gradients.py", "BUCKETS: Final = 8", "BUCKETS: Final = 9"),
        ("flows/training/ranks.py", "self.world > 1", "self.world > 2"),
        ("flows/training/skips.py", "min(rules.max_skipped, rules.steps)", "rules.max_skipped"),
        ("flows/training/best.py", "loss < self.loss", "loss <= self.loss"),
        ("flows/recipe.py", "learning_rate: Annotated[Number, Field(gt=0)] = 1e-3", "learning_rate: float = 2e-3"),
        ("data/reading/order.py", "(self._seed, epoch)", "(epoch, self._seed)"),
        ("models/family.py", "return list(self.parameters())", "return []"),
    ],
)  # fmt: skip
def test_another_loop_optimizer_or_loader_is_other_work_for_all(
    before: dict[str, Code], tree: Tree, file: str, old: str, new: str
) -> None:
    tree.replace(file, (old, new))
    assert changed(before, tree, "vae", "gpt") == {"vae", "gpt"}


def test_another_tokenizer_is_other_work_for_text_alone(
    before: dict[str, Code], tree: Tree
) -> None:
    tree.replace("models/parts/tokens.py", ("add_special_tokens=False", "add_special_tokens=True"))
    assert changed(before, tree) == {"gpt"}


def test_other_words_of_captions_are_other_work_for_who_reads_them(
    before: dict[str, Code], tree: Tree
) -> None:
    tree.replace("models/parts/words.py", ("NFC", "NFKC"))
    assert changed(before, tree) == {"ddpm", "wavenet"}


def test_another_noise_is_other_work_for_who_draws_by_it(
    before: dict[str, Code], tree: Tree
) -> None:
    tree.replace("models/parts/noise.py", ("first *= -2", "first *= -3"))
    assert changed(before, tree) == {"ddpm", "vae"}  # by normals


PLUMBING = (
    *("journal", "shipping", "hearts", "halting", "room", "nodes", "run_folder", "supervisor"),
    *("ray_train", "worker", "controllers", "lean_trainer", "plain_trainer", "rendezvous"),
)


def test_another_journal_launch_or_command_is_the_same_work(
    before: dict[str, Code], tree: Tree
) -> None:
    for path in [
        *(tree.root / f"flows/training/{name}.py" for name in PLUMBING),
        *(tree.root / "flows/cli").glob("*.py"),
        *(tree.root / "flows/reports").glob("*.py"),
    ]:
        document = ast.parse(path.read_text())
        for node in ast.walk(document):
            if isinstance(node, ast.FunctionDef):
                node.body.insert(0, ast.parse("print('other')").body[0])
        path.write_text(ast.unparse(document))
    assert not changed(before, tree)


def test_other_metrics_are_judged_anew_and_train_nothing(
    before: dict[str, Code], tree: Tree
) -> None:
    pictures, texts = Tree(ROOT).judging("ddpm"), Tree(ROOT).judging("gpt")
    tree.rename("flows/evaluating/scores.py", "flows/evaluating/outcomes.py")
    tree.rename("models/judges/metrics.py", "models/judges/figures.py")
    assert (tree.judging("ddpm"), tree.judging("gpt")) == (pictures, texts)
    tree.replace("flows/evaluating/pictures.py", ("LEAST_HELD_OUT", "(LEAST_HELD_OUT + 1)"))
    tree.replace("flows/evaluating/pictures.py", ("import (LEAST_HELD_OUT + 1)", "import LEAST_HELD_OUT"))  # fmt: skip
    assert tree.judging("ddpm") != pictures
    assert tree.judging("gpt") == texts
    assert not changed(before, tree)


def test_who_is_used_in_whose_place_is_other_work(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    file = tmp_path / "models/net.py"
    text = "def low(x):\n    return x - 1\n\ndef high(x):\n    return x + 1\n\n"
    entry = "def loss(x):\n    return {}(x) * {}(x / 2)\n"

    def digest(*names: str) -> str:
        file.write_text(text + entry.format(*names))
        return code_of(Sources(tmp_path), ["models.net:loss"]).digest

    assert digest("low", "high") != digest("high", "low")
    assert digest("low", "high") == digest("low", "high")


def test_names_of_a_function_hide_those_of_its_module(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    file = tmp_path / "models/net.py"

    def uses(body: str) -> set[str]:
        file.write_text(f"def scale(x): return 2 * x\n\ndef loss(x, y):\n    {body}\n")
        return {key.name for key in Sources(tmp_path).form(Key("models.net", "loss")).uses}

    assert uses("return scale(x)") == {"scale"}
    assert uses("return [scale(one) for one in x]") == {"scale"}
    assert uses("return [scale for scale in scale(x)]") == {"scale"}
    assert uses("scale = y\n    return scale(x)") == set()
    assert uses("return (lambda scale: scale(x))(y)") == set()
    assert uses("return [scale for scale in x]") == set()


def test_an_entry_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no definition 'models\.net:loss' below"):
        code_of(Sources(tmp_path), ["models.net:loss"])


@settings(max_examples=15)
@given(data=st.data())
def test_no_comment_or_blank_line_means_anything(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    file = data.draw(st.sampled_from(["models/diffusion/ddpm.py", LOOP, "data/reading/splits.py"]))
    text = (ROOT / file).read_text()
    lines = text.splitlines()
    begins = {node.lineno - 1 for node in ast.walk(ast.parse(text)) if isinstance(node, ast.stmt)}
    words = st.text(st.characters(exclude_categories=("Cc", "Cs", "Zl", "Zp")), max_size=30)
    for place in data.draw(st.lists(st.sampled_from(sorted(begins)), max_size=5)):
        lines[place] = f"\n  # {data.draw(words)}\n{lines[place]}"
    forms = []
    for written in (text, "\n".join(lines)):
        root = tmp_path_factory.mktemp("sources")
        (root / file).parent.mkdir(parents=True)
        (root / file).write_text(written)
        sources, module = Sources(root), _dotted(file)
        forms.append([sources.form(Key(module, name)) for name in sources.names(module)])
    assert forms[0] == forms[1]


@contextmanager
def watched() -> Iterator[set[tuple[str, str]]]:
    """Yield the functions of ours that run meanwhile: (file, name in it)."""
    found: set[tuple[str, str]] = set()

    def note(frame: FrameType, event: str, _: Any) -> None:
        code = frame.f_code
        if event == "call" and code.co_flags & inspect.CO_OPTIMIZED:  # no module, no class
            path = Path(code.co_filename)
            if path.is_relative_to(ROOT) and path.relative_to(ROOT).parts[0] in READ:
                name = code.co_qualname.partition(".<locals>")[0]
                found.add((path.relative_to(ROOT).as_posix(), name))

    sys.setprofile(note)
    try:
        yield found
    finally:
        sys.setprofile(None)


@pytest.mark.parametrize("family", ["ddpm", "lda", "gpt"])
def test_what_a_training_runs_counts_or_is_plumbing(family: str, tmp_path: Path) -> None:
    if family == "gpt":
        modality, split = "text", {"train": prose(0, 30), "validation": prose(1, 9)}
        folder = text_folder(tmp_path / "prose", split)
    else:
        modality, folder = "image", prepare(tmp_path / "shades")
    spec = spec_of(folder, family=family, steps=1 if family == "lda" else 2)
    spec = spec.model_copy(update={"image_size": 8 if modality == "image" else None})
    run = RunFolder(tmp_path / spec.identity)
    run.path.mkdir()
    lease = run.lease()
    with watched() as ran:
        train(spec, run, Ranks(), lease=lease)
    sources = Sources(ROOT)
    counted = code_of(sources, training_entries(sources, family, modality)).parts
    plumbing = {f"flows/training/{name}.py" for name in PLUMBING}
    missing = {
        (file, name)
        for file, name in ran
        if file not in plumbing and name not in counted and "<lambda>" not in name
    }
    assert missing <= {("flows/training/previews.py", "_captions")}  # what samples are shown of
    assert {
        ("flows/training/ranks.py", "Ranks.told"),
        ("data/reading/order.py", "Order._order_of"),
    } <= ran
