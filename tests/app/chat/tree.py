"""What a chat should say, as a tree: everything said, and all that was ever said after it.

Knows no controller and no store, which are held against it.
"""

from copy import deepcopy
from dataclasses import dataclass, field


@dataclass(kw_only=True)
class Node:
    """Something said. at: which of what was said after it is shown."""

    text: str
    asks: bool = False
    after: list["Node"] = field(default_factory=list)
    at: int = 0

    def say(self, text: str, *, asks: bool = False) -> None:
        self.after.append(Node(text=text, asks=asks))
        self.at = len(self.after) - 1


class Tree:
    """A chat, and what was taken back of it."""

    def __init__(self) -> None:
        self._root = Node(text="")
        self._undone: list[Node] = []

    @property
    def nodes(self) -> list[Node]:
        """What is shown, after a beginning that says nothing."""
        nodes = [self._root]
        while nodes[-1].after:
            nodes.append(nodes[-1].after[nodes[-1].at])
        return nodes

    @property
    def texts(self) -> list[str]:
        return [each.text for each in self.nodes[1:]]

    @property
    def variants(self) -> list[tuple[int, int]]:
        """Of each that is shown: which variant it is, and of how many."""
        return [(each.at, len(each.after)) for each in self.nodes if each.after]

    @property
    def varied(self) -> list[int]:
        """Where others stand beside what is shown."""
        return [at for at, each in enumerate(self.nodes) if len(each.after) > 1]

    @property
    def questions(self) -> list[int]:
        return [at for at, each in enumerate(self.nodes[1:]) if each.asks]

    @property
    def can_redo(self) -> bool:
        return bool(self._undone)

    def ask(self, text: str, instead_of: int | None = None) -> None:
        nodes = self.nodes
        nodes[len(nodes) - 1 if instead_of is None else instead_of].say(text, asks=True)

    def answer(self, text: str) -> None:
        """To the last question, whether or not there is an answer."""
        *before, last = self.nodes
        (last if last.asks else before[-1]).say(text)

    def undo(self) -> str:
        """Returns the question that was taken back."""
        self._undone.append(deepcopy(self._root))
        nodes, at = self.nodes, self.questions[-1]
        parent = nodes[at]
        del parent.after[parent.at]
        parent.at = max(parent.at - 1, 0)
        return nodes[at + 1].text

    def redo(self) -> None:
        self._root = self._undone.pop()

    def choose(self, at: int, wanted: int) -> None:
        self.nodes[at].at = wanted

    def go_on(self) -> None:
        """What was taken back cannot be had again."""
        self._undone.clear()

    def cut(self, at: int) -> "Tree":
        """A copy that ends with an answer, or before a question, as a fork does."""
        copy = Tree()
        copy._root = deepcopy(self._root)
        nodes = copy.nodes
        last = nodes[at] if nodes[at + 1].asks else nodes[at + 1]
        last.after.clear()
        last.at = 0
        return copy
