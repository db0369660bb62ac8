"""What passes along wires: ports are read as written, and a graph that does not fit is refused by both ends."""

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.ports import KINDS, Call, Misfit, Node, Port, check, salted, walk

PORTS = st.builds(
    Port,
    kind=st.sampled_from(KINDS),
    shape=st.lists(st.none() | st.integers(1, 4096), max_size=4).map(tuple),
    space=st.sampled_from(["", "16000 Hz", "1f2e3d4c", "mel 80x256 of 22050 Hz"]),
    optional=st.booleans(),
)


@given(PORTS)
def test_a_port_is_read_as_it_is_written(port: Port) -> None:
    assert Port.parse(str(port)) == port


@pytest.mark.parametrize(
    "text", ["", "picture", "pixels 3x", "pixels 3xa", "pixels of", "text?? 3"]
)
def test_what_is_no_port_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is no port, like 'pixels 3x32x32'"):
        Port.parse(text)


@st.composite
def graphs(draw: st.DrawFn) -> tuple[dict[str, Node], str]:
    """Graphs that fit: a node takes from the request or any node before it, and the last one takes all that is left."""
    known: dict[str, Port] = {}
    nodes: dict[str, Node] = {}
    for number in range(draw(st.integers(1, 5))):
        wires, inputs = {}, {}
        for place in range(draw(st.integers(0, 3))):
            if known and draw(st.booleans()):
                wire = draw(st.sampled_from(sorted(known)))
                inputs[f"in{place}"] = Port(known[wire].kind, known[wire].shape, known[wire].space)
            else:
                wire = f"request.given{number}{place}"
                inputs[f"in{place}"] = draw(PORTS)
            wires[f"in{place}"] = wire
        output = draw(PORTS)
        nodes[f"node{number}"] = Node(inputs, {"out": output}, wires)
        known[f"node{number}.out"] = output
    last = Node(
        {f"all{n}": Port(p.kind, p.shape, p.space) for n, p in enumerate(known.values())},
        {"out": Port("pixels", (3, 8, 8))},
        {f"all{n}": wire for n, wire in enumerate(known)},
    )
    return {**nodes, "last": last}, "last.out"


@given(graphs())
def test_a_graph_that_fits_is_walked_in_its_order_and_asks_for_what_it_needs(
    graph: tuple[dict[str, Node], str],
) -> None:
    nodes, output = graph
    request = check(nodes, output)
    wires = {name: node.wires for name, node in nodes.items()}
    steps = walk(wires, output, {name: f"request.{name}" for name in request})
    call = next(steps)
    for name, after in zip(nodes, [*list(nodes)[1:], None], strict=True):
        assert call == Call(name, dict(wires[name]))  # every value is named by where it came from
        if after is not None:
            call = steps.send({"out": f"{name}.out"})
    with pytest.raises(StopIteration) as end:
        steps.send({"out": output})
    assert end.value.value == output


@given(graphs(), st.data())
def test_a_misfit_of_kind_shape_or_space_is_refused_by_both_its_ends(
    graph: tuple[dict[str, Node], str], data: st.DataObject
) -> None:
    nodes, output = graph
    last = nodes["last"]
    name = data.draw(st.sampled_from(sorted(last.inputs)))
    found = last.inputs[name]
    other = data.draw(
        st.sampled_from(
            [
                Port("volume" if found.kind != "volume" else "mel", found.shape, found.space),
                Port(found.kind, (*found.shape, 7), found.space),
                Port(found.kind, found.shape, f"{found.space} elsewhere"),
            ]
        )
    )
    broken = Node({**last.inputs, name: other}, last.outputs, last.wires)
    wire = last.wires[name]
    both = f"last takes {other} as {name}, but {wire} is {nodes[wire.partition('.')[0]].outputs['out']}"
    with pytest.raises(Misfit, match=f"^{re.escape(both)}$"):
        check({**nodes, "last": broken}, output)


def node(wires: dict[str, str], **inputs: Port) -> Node:
    return Node(inputs, {"pixels": Port("pixels", (3, 8, 8))}, wires)


@pytest.mark.parametrize(
    ("nodes", "says"),
    [
        (
            {"a": node({"x": "b.pixels"}, x=Port("pixels", (3, 8, 8)))},
            "from b.pixels, but there is",
        ),
        ({"a": node({}, x=Port("text"))}, "a takes text as x, and no wire brings it"),
        ({"a": node({"y": "request.y"}, x=Port("text"))}, "a has no input y; it takes x"),
        ({"b": node({}), "a": node({})}, "what b gives goes nowhere"),
        ({"request": node({})}, "request cannot be the name of a stage"),
        ({"b": node({})}, "a.pixels is to come out, but there is only b.pixels"),
    ],
)
def test_wires_from_nowhere_and_nodes_for_nobody_are_refused(
    nodes: dict[str, Any], says: str
) -> None:
    with pytest.raises(Misfit, match=re.escape(says)):
        check(nodes, "a.pixels")


def test_two_nodes_ask_the_request_for_one_kind_under_one_name() -> None:
    nodes = {
        "a": node({"x": "request.x"}, x=Port("pixels", (3, 16, 16))),
        "b": node({"x": "request.x", "y": "a.pixels"}, x=Port("text"), y=Port("pixels", (3, 8, 8))),
    }
    with pytest.raises(Misfit, match=r"b takes text as x, but request\.x is pixels elsewhere"):
        check(nodes, "b.pixels")


def test_an_input_that_the_caller_left_out_stays_out() -> None:
    assert next(walk({"a": {"text": "request.text"}}, "a.pixels", {})) == Call("a", {})


@given(st.integers(-(2**63), 2**63 - 1))
def test_no_two_nodes_share_noise_and_an_empty_salt_leaves_the_seed(seed: int) -> None:
    assert salted(seed, "") == seed
    assert salted(seed, "base") == salted(seed, "base") != salted(seed, "upsampler")
    assert 0 <= salted(seed, "base") < 2**63
