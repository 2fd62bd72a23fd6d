"""Texts that begin alike as a tree, and the passes in which a model reads it, each token once.

A node is a run of tokens; its children go on from it. A tree that fits into a pass is read in one,
however it is branched. Of one that does not, the beginning is read first and held, and what goes
on from it follows in as many passes as it takes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

Ids = npt.NDArray[np.int64]

# A beginning of fewer tokens, shared by more than a pass holds, is not worth a pass of its own:
# those who share it read it each.
_FEWEST_HELD = 32
# Tokens looked back at in a pass, for each of its own: bounds what its plan takes.
_REACH_PER_TOKEN = 64


@dataclass(slots=True, eq=False)
class Node:
    """Tokens `start` to `stop` (exclusive) of text `text`, and of all that begin as it does.

    questions: (number of a request, first, past the last place that it asks about), inside the
    node. tokens: of the node and all below it.
    """

    text: int
    start: int
    stop: int
    parent: Node | None = None
    children: list[Node] = field(default_factory=list)
    questions: list[tuple[int, int, int]] = field(default_factory=list)
    tokens: int = 0

    @property
    def length(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True, slots=True)
class Pass:
    """Nodes to read in one go, all going on from the first `prefix` tokens that are held, or from
    an earlier one of them, whose number stands in `parents`. holds: the one node's tokens are held
    then, too."""

    prefix: int
    nodes: tuple[Node, ...]
    parents: tuple[int | None, ...]
    holds: bool = False

    @property
    def tokens(self) -> int:
        return sum(node.length for node in self.nodes)


def grow(texts: Sequence[Ids], most: int) -> tuple[Node, list[Node]]:
    """The tree of texts that differ from each other and are in lexicographic order: its root,
    which has no tokens, and the node at which each text ends. No node has more than `most`."""
    root = Node(0, 0, 0)
    ends: list[Node] = []
    path = [root]
    for number, text in enumerate(texts):
        shared = _common(texts[number - 1], text) if number else 0
        below = None
        while path[-1].stop > shared:
            below = path.pop()
        if below is not None and path[-1].stop < shared:
            path.append(_split(below, shared))
        leaf = Node(number, shared, len(text), path[-1])
        path[-1].children.append(leaf)
        path.append(leaf)
        ends.append(leaf)
    for node in list(_below(root)):
        while node.length > most:
            _split(node, node.start + most)
    return root, ends


def ask(end: Node, request: int, count: int) -> None:
    """Notes that a request asks about the last `count` places of the text that ends at `end`."""
    first = end.stop - count
    node: Node | None = end
    while node is not None and node.stop > first:
        node.questions.append((request, max(first, node.start), node.stop))
        node = node.parent


def passes(root: Node, most: int) -> Iterator[Pass]:
    """What to read, in order; of at most `most` tokens, but for what a short beginning adds."""
    for node in reversed(list(_below(root))):
        node.tokens = node.length + sum(child.tokens for child in node.children)
    waiting = [root]
    while waiting:
        node = waiting.pop()
        if node.length:
            yield Pass(node.start, (node,), (None,), holds=True)
        small, large = _units(node, most)
        yield from _packed(small, node.stop, most)
        # The last goes first, and all below it before the next: what is held is always a path.
        waiting += large


def _common(one: Ids, other: Ids) -> int:
    """How many tokens both begin with."""
    length = min(len(one), len(other))
    differ = one[:length] != other[:length]
    place = int(differ.argmax()) if length else 0
    return place if length and differ[place] else length


def _split(node: Node, place: int) -> Node:
    """Cuts a node in two; returns the upper part, and the node is what is below."""
    upper = Node(node.text, node.start, place, node.parent, [node])
    assert node.parent is not None
    siblings = node.parent.children
    siblings[siblings.index(node)] = upper
    node.start, node.parent = place, upper
    return upper


def _below(node: Node) -> Iterator[Node]:
    """A node and all below it, each before its children."""
    waiting = [node]
    while waiting:
        node = waiting.pop()
        yield node
        waiting += reversed(node.children)


def _units(node: Node, most: int) -> tuple[list[Node], list[Node]]:
    """What goes on from a node: trees that fit into a pass, and those whose first node is held."""
    small: list[Node] = []
    large: list[Node] = []
    waiting = node.children[::-1]
    while waiting:
        child = waiting.pop()
        if child.tokens <= most or not child.children:
            small.append(child)
        elif child.length >= _FEWEST_HELD:
            large.append(child)
        else:
            waiting += reversed(_dissolved(child))
    return small, large


def _dissolved(node: Node) -> list[Node]:
    """A node's children, each with the node's tokens as its own."""
    parts = list(node.children)
    for child in parts:
        child.start, child.parent = node.start, node.parent
        child.tokens += node.length
    if node.questions:
        own = Node(node.text, node.start, node.stop, node.parent, questions=node.questions)
        own.tokens = own.length
        parts.append(own)
    return parts


def _packed(units: Sequence[Node], prefix: int, most: int) -> Iterator[Pass]:
    nodes: list[Node] = []
    parents: list[int | None] = []
    tokens = reach = 0
    for unit in units:
        members = list(_below(unit))
        looks = sum(node.stop for node in members)
        full = tokens + unit.tokens > most or reach + looks > _REACH_PER_TOKEN * most
        if nodes and full:
            yield Pass(prefix, tuple(nodes), tuple(parents))
            nodes, parents, tokens, reach = [], [], 0, 0
        places = {id(node): len(nodes) + place for place, node in enumerate(members)}
        nodes += members
        parents += [places.get(id(node.parent)) for node in members]
        tokens, reach = tokens + unit.tokens, reach + looks
    if nodes:
        yield Pass(prefix, tuple(nodes), tuple(parents))
