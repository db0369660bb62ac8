"""The graph from data over runs, versions and the pipeline to what was served, and to one answer."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from flows.context import registry
from flows.evaluating.gate import Evaluation
from flows.provenance import tracing
from flows.recipe import Recipe
from flows.tuning.space import Found
from infra.pipelines import Modality, read_pipeline
from infra.settings import settings
from infra.times import utc

if TYPE_CHECKING:
    from infra.receipts.receipts import Receipt
    from infra.registry.registry import Version

COLUMNS: Final = ("data", "run", "version", "pipeline", "endpoint", "receipt")
NOUNS: Final[Mapping[Modality, str]] = {
    **{"image": "picture", "audio": "sound", "text": "text", "clip": "clip"},
    **{"embedding": "embedding", "mesh": "mesh"},
}
MOST_ENDPOINTS: Final = 8  # rows of the ledger drawn; `atelier history` has all


@dataclass(frozen=True, slots=True)
class Node:
    """One box: its identity names the thing itself, wherever it is drawn."""

    column: str
    identity: str
    title: str
    lines: tuple[str, ...] = ()
    links: tuple[tuple[str, str], ...] = ()  # label, address


@dataclass(slots=True)
class Graph:
    """Nodes by identity, each once, and edges between identities, from cause to effect."""

    name: str
    title: str
    note: str = ""
    nodes: list[Node] = field(default_factory=list)
    edges: list[tuple[str, str, str]] = field(default_factory=list)  # from, to, what it says

    def add(self, node: Node) -> str:
        """Add a node unless it is there; return its identity."""
        if all(node.identity != known.identity for known in self.nodes):
            self.nodes.append(node)
        return node.identity

    def link(self, before: str, after: str, says: str = "") -> None:
        """Add an edge unless it is there."""
        if (before, after, says) not in self.edges:
            self.edges.append((before, after, says))

    def as_json(self) -> dict[str, Any]:
        """Return the graph as a document."""
        edges = [dict(zip(("from", "to", "says"), edge, strict=True)) for edge in self.edges]
        return {"title": self.title, "nodes": [asdict(node) for node in self.nodes], "edges": edges}


def graph_of(what: str) -> Graph:
    """Return the lineage of a picture (a file with a receipt) or of a version (NAME[:v|@alias]).

    Raises:
        ReceiptError, Untraceable: as `flows.provenance.tracing.trace`.
        RegistryError: no such version.
    """
    path = Path(what)
    if path.suffix.lower() == ".png" or path.is_file():
        checked = tracing.verify(path)
        found = checked.found or tracing.trace(path)  # which says why there is none
        graph = Graph(
            re.sub(r"[^A-Za-z0-9_-]", "-", path.stem)[:60], f"Where {path.name} comes from"
        )
        _pipeline(graph, found.version)
        noun = NOUNS[found.pipeline.modality]
        _receipt(graph, found.receipt, found.version, found.says, noun)
        wrong = [one.says for one in checked.checks if one.passed is False and one.name != "ledger"]
        graph.note = "; ".join([graph.note, *wrong])
        return graph
    version = registry().get(what)
    graph = Graph(f"{version.name}-{version.number}", f"Where {version.ref} comes from")
    if version.kind == "pipeline":
        _pipeline(graph, version)
    else:
        _trained(graph, version, "")
    return graph


def mermaid_text(graph: Graph) -> str:
    """Return the graph as Mermaid (https://mermaid.js.org/syntax/flowchart.html); ids are n0, n1, ..."""
    ids = {node.identity: f"n{place}" for place, node in enumerate(graph.nodes)}
    lines = ["flowchart LR"]
    for column in COLUMNS:
        here = [node for node in graph.nodes if node.column == column]
        if here:
            lines.append(f'  subgraph {column}_["{column}"]')
            for node in here:
                text = "<br/>".join(_escaped(part) for part in (node.title, *node.lines))
                lines.append(f'    {ids[node.identity]}["{text}"]')
            lines.append("  end")
    for before, after, says in graph.edges:
        label = f'|"{_escaped(says)}"|' if says else ""
        lines.append(f"  {ids[before]} -->{label} {ids[after]}")
    return "\n".join(lines) + "\n"


def _escaped(text: str) -> str:
    """Return text in which everything but letters, digits and plain marks is an entity of Mermaid's."""
    return "".join(
        sign if sign.isascii() and (sign.isalnum() or sign in " .,:-+/()@") else f"#{ord(sign)};"
        for sign in text
    )


def _pipeline(graph: Graph, version: "Version") -> str:
    directory = registry().fetch(version)
    pipeline = read_pipeline(directory)
    identity = graph.add(_node(version, "pipeline"))
    dataset = ""
    if (directory / "recipe.json").is_file():
        recipe = Recipe.model_validate_json((directory / "recipe.json").read_bytes())
        dataset = recipe.data.name
        if recipe.found_by is not None:
            graph.link(_search(graph, recipe.found_by), identity, "found its values")
    for stage in pipeline.stages:
        made = _pinned(graph, stage.name, stage.version, stage.sha256, dataset)
        graph.link(made, identity, stage.stage)
    if (directory / "evaluation.json").is_file():
        found = Evaluation.model_validate_json((directory / "evaluation.json").read_bytes())
        if found.judge is not None:
            name, _, number = found.judge.version.partition(":")
            judge = _pinned(graph, name, int(number), found.judge.sha256, dataset)
            graph.link(judge, identity, "judge")
    if run := _run(graph, version, "judging", dataset):
        graph.link(run, identity, "judged")
    moved = tracing.places(version)
    for row, until in moved[-MOST_ENDPOINTS:]:
        ended = f"until {utc(until)}" if until else "until now"
        node = Node(
            "endpoint",
            f"ledger {row.hash}",
            f"{version.name}, {row.stage}",
            (f"epoch {row.epoch}, by {row.actor}", utc(row.at), ended),
        )
        graph.link(identity, graph.add(node), "forced" if row.forced else "")
    return identity


def _search(graph: Graph, found: Found) -> str:
    run = registry().run(found.search)
    page = f"#/experiments/{run.info.experiment_id}/runs/{found.search}" if run else ""
    lines = (f"run {found.search[:16]}", f"the best: trial {found.trial}")
    links = _mlflow(page) if page else ()
    return graph.add(Node("run", f"run {found.search}", "search", lines, links))


def _pinned(graph: Graph, name: str, number: int, digest: str, dataset: str) -> str:
    """Add a pinned version by its digest; one that is not registered here is drawn as such."""
    version = registry().by_digest(name, digest)
    if version is not None:
        return _trained(graph, version, dataset)
    lines = (f"sha256 {digest[:16]}", "not in this registry")
    return graph.add(Node("version", f"sha256 {digest}", f"{name}:{number}", lines))


def _trained(graph: Graph, version: "Version", dataset: str) -> str:
    identity = graph.add(_node(version, "version"))
    if run := _run(graph, version, "training", dataset):
        graph.link(run, identity)
    return identity


def _node(version: "Version", column: str) -> Node:
    lines = [f"sha256 {version.digest[:16]}", utc(version.created)]
    if family := version.tags.get("atelier.family"):
        lines.insert(0, family)
    if origin := version.tags.get("atelier.imported_from"):
        lines.append(f"imported from {origin[:16]}")
    page = f"#/models/{version.name}/versions/{version.number}"
    return Node(column, f"sha256 {version.digest}", version.ref, tuple(lines), _mlflow(page))


def _run(graph: Graph, version: "Version", what: str, dataset: str) -> str | None:
    """Add the run that made a version, and the data that it read; None where its tags name no run."""
    run_id = version.tags.get("atelier.run_id")
    if not run_id:
        return None
    lines = [f"run {run_id[:16]}"]
    if commit := version.tags.get("atelier.git_commit"):
        lines.append(f"commit {commit[:12]}")
    if seed := version.tags.get("atelier.seed"):
        lines.append(f"seed {seed}")
    links: tuple[tuple[str, str], ...] = ()
    if (run := registry().run(run_id)) is not None:
        links = _mlflow(f"#/experiments/{run.info.experiment_id}/runs/{run_id}")
        if flow_run := run.data.tags.get("atelier.flow_run"):
            prefect = settings().prefect_url.removesuffix("/api")
            links = (*links, ("Prefect", f"{prefect}/runs/flow-run/{flow_run}"))
    else:
        lines.append("in another installation")
    subject = version.name.partition(".")[2] or version.name
    identity = graph.add(Node("run", f"run {run_id}", f"{what} {subject}", tuple(lines), links))
    if data_identity := version.tags.get("atelier.data_identity"):
        name = version.tags.get("atelier.dataset") or dataset or "data"
        node = Node("data", f"data {data_identity}", name, (data_identity[:24],))
        graph.link(graph.add(node), identity)
    if base := version.tags.get("atelier.base"):
        digest = version.tags["atelier.base_digest"]
        lines = [f"sha256 {digest[:16]}", "whose weights came first"]
        node = Node("data", f"base sha256 {digest}", base, tuple(lines))
        graph.link(graph.add(node), identity)
    needs = version.tags.get("atelier.needs", "").split()
    digests = version.tags.get("atelier.needs_digests", "").split()
    for need, digest in zip(needs, digests, strict=True):
        node = Node("data", f"outputs of {need} {digest}", need, ("outputs of every row",))
        graph.link(graph.add(node), identity)
    return identity


def _mlflow(page: str) -> tuple[tuple[str, str], ...]:
    uri = settings().mlflow_uri
    return (("MLflow", f"{uri}/{page}"),) if uri.startswith(("http://", "https://")) else ()


def _receipt(graph: Graph, receipt: "Receipt", version: "Version", says: str, noun: str) -> None:
    asked = receipt.prompt or "; ".join(text for _, text in receipt.messages or ())
    lines = [
        *_lines(asked),
        ", ".join([f"seed {receipt.seed}", *([receipt.size] if receipt.size else [])]),
        utc(receipt.created),
    ]
    graph.note = says
    identity = graph.add(Node("receipt", f"request {receipt.request_id}", noun, tuple(lines)))
    for row, _ in tracing.places(version):
        same = (row.stage, row.epoch) == (receipt.place, receipt.epoch)
        if same and f"ledger {row.hash}" in {node.identity for node in graph.nodes}:
            graph.link(f"ledger {row.hash}", identity)
            return
    found = "by number" if receipt.place is None else "elsewhere"
    graph.link(f"sha256 {version.digest}", identity, found)


def _lines(text: str, width: int = 26, most: int = 2) -> Sequence[str]:
    """Return a prompt in at most two short lines."""
    import textwrap

    return textwrap.wrap(text, width, max_lines=most, placeholder=" ...")
