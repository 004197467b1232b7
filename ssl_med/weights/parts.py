"""Which tensors of a source are meant: containers and prefixes are tried by rule, several candidates are told apart."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from torch import Tensor

from ssl_med.errors import UserError

State = dict[str, Tensor]

NOISE = ("module.", "_orig_mod.", "task.")
"""What wrappers (DistributedDataParallel, torch.compile, our learner) put before every name."""

PREFIXES = (
    *("teacher", "student", "teacher_backbone", "backbone", "base_encoder", "momentum_encoder", "encoder_q"),
    *("encoder_k", "encoder", "model", "net", "network", "vit", "swinViT", "swin_vit", "dinov2", "trunk", "visual"),
    *("dinov2_with_registers", "vit_mae", "patch_embedding_wrapper", "transformer"),
)
"""First parts of names behind which a whole model may stand."""

LAST_CHOICE = ("student", "momentum_encoder", "encoder_k", "teacher_backbone", "state_dict_ema", "model_ema")
"""Of several candidates not the published one: DINO evaluates its teacher, MoCo its base encoder, BYOL its student."""

_DEPTH = 4


class Candidate(NamedTuple):
    """Tensors that may be a model.

    Attributes:
        label: containers and prefixes that lead to them, outermost first.
        state: tensors by what is left of their names.
    """

    label: tuple[str, ...]
    state: State

    def __str__(self) -> str:
        return ".".join(self.label) or "the whole"


def candidates(content: Mapping[str, Any]) -> list[Candidate]:
    """All sets of tensors in nested containers, with and without the prefixes of their names."""
    return [found for label, state in _containers(content, ()) for found in _behind_prefixes(label, state)]


def _containers(content: Mapping[str, Any], label: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], State]]:
    state = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
    if state:
        yield label, state
    for name, value in content.items():
        if isinstance(value, Mapping) and len(label) < _DEPTH and name not in ("optimizer", "optimizer_states"):
            yield from _containers(value, (*label, str(name)))


def _behind_prefixes(label: tuple[str, ...], state: State) -> Iterator[Candidate]:
    state = _without_noise(state)
    yield Candidate(label, state)
    if len(label) >= 2 * _DEPTH:
        return
    for prefix in PREFIXES:
        inner = {name.removeprefix(f"{prefix}."): v for name, v in state.items() if name.startswith(f"{prefix}.")}
        if inner:
            yield from _behind_prefixes((*label, prefix), inner)


def _without_noise(state: State) -> State:
    clean = {_clean(name): value for name, value in state.items()}
    return clean if len(clean) == len(state) else state


def _clean(name: str) -> str:
    while name.startswith(NOISE):
        name = name.split(".", 1)[1]
    return name.replace("._orig_mod.", ".")


def choose(
    found: list[Candidate], recognised: Callable[[State], bool], placed: Callable[[State], bool], part: str | None
) -> tuple[Candidate, list[str]]:
    """The candidate to load, and what else there is.

    Args:
        found: see :func:`candidates`.
        recognised: whether tensors make a model of a known layout.
        placed: whether that layout has a place in the backbone; the first to be taken.
        part: a container or prefix that must lead to it, or all of them with dots between; None for the published
            choice.

    Raises:
        UserError: no candidate, or none behind ``part``.
    """
    known = [candidate for candidate in found if placed(candidate.state)]
    known = known or [candidate for candidate in found if recognised(candidate.state)]
    fitting = [candidate for candidate in known if part is None or part in (str(candidate), *candidate.label)]
    if part is not None and not fitting:
        others = ", ".join(str(c) for c in known) or "none"
        raise UserError(f"part {part!r}: the source has no model behind that name; it has: {others}")
    if not fitting:
        raise UserError(_unknown(found))
    best = min(fitting, key=lambda c: (_rank(c) if part is None else 0, len(c.label), -len(c.state)))
    return best, [str(c) for c in known if c is not best]


def _rank(candidate: Candidate) -> int:
    if any(name in LAST_CHOICE for name in candidate.label):
        return 2
    return 0 if "teacher" in candidate.label else 1


def _unknown(found: list[Candidate]) -> str:
    if not found:
        return "the source holds no tensors"
    names = list(max(found, key=lambda c: len(c.state)).state)
    return (
        f"the source is of no known layout; it holds {len(names)} tensors such as {', '.join(names[:4])}. Give a state "
        "dict whose names are those of the backbone (`backbone.state_dict()`)"
    )
