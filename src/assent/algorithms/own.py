"""Losses, objectives and estimators of advantages that a user wrote: FILE.py:function in place of one of the tables."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from assent.errors import ConfigError, NonFiniteError, UserError
from assent.functions import load_function
from assent.guest import Guest, blamed, ends_programs
from assent.losses.functions import Quantity, TensorFunction, inputs_of
from assent.names import suggestion

log = logging.getLogger(__name__)

POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
GROUPS = ("response", "prompt")
"""Tensors by which items belong together."""
STARS = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}


class OwnFunction:
    """A user's function as the tables' own are called. Its positional parameters are the tensors that it asks for, by
    name; its keyword-only ones are options."""

    def __init__(self, spec: str, flag: str, there: Mapping[str, Quantity], together: str | None = None) -> None:
        """`there` are the tensors that it may ask for. `together` says what to do where its items depend on one
        another, which is then found out; None: they may. Raises ConfigError, with the `flag` that it was given by, for
        what is no such function."""
        self.spec, self.flag = spec, flag
        self._together = together
        self._guest = Guest()
        with self._guest.turn():
            self.function = load_function(spec, flag)
        try:
            self.__signature__ = inspect.signature(self.function)
        except (TypeError, ValueError):
            raise ConfigError(f"{self.who} has no signature that Python can read; wrap it in a function.") from None
        for name, parameter in self.__signature__.parameters.items():
            if parameter.kind in STARS:
                raise ConfigError(
                    f"{self.who}: {STARS[parameter.kind]}{name} does not say which tensors it asks for. Name them as "
                    f"parameters; there are: {listed(there)}."
                )
            if parameter.kind in POSITIONAL and name not in there:
                raise ConfigError(
                    f"{self.who}: there is no tensor '{name}'.{suggestion(name, there)} There are: {listed(there)}. An "
                    "option of the function stands behind a * in its parameters."
                )
        if not inputs_of(self):
            raise ConfigError(f"{self.who} asks for no tensor. There are: {listed(there)}.")
        self.sizes = {name: there[name].size for name in inputs_of(self)}

    @property
    def who(self) -> str:
        """How messages name it."""
        return f"{self.flag} {self.spec}".strip()

    def __call__(self, *tensors: Tensor, **named: Any) -> Tensor:
        """Raises UserError where the function raises, changes what it was given, or gives anything but one number for
        each item; NonFiniteError where one of these is not finite."""
        given = self.__signature__.bind(*tensors, **named).arguments
        asked: dict[str, Tensor] = {name: given[name] for name in self.sizes}
        lengths = {size: len(asked[name]) for name, size in self.sizes.items()}
        if not any(lengths.values()):  # a micro-batch that only keeps a rank in step
            return next((x for x in asked.values() if x.requires_grad), next(iter(asked.values()))) * 0.0
        versions = {name: tensor._version for name, tensor in asked.items()}
        with self._guest.turn():
            try:
                made = self.function(*tensors, **named)
            except BaseException as error:
                if not isinstance(error, Exception) and not ends_programs(error):
                    raise
                raise UserError(f"{self.who} raised {blamed(error)}.") from error
        for name, tensor in asked.items():
            if tensor._version != versions[name]:
                raise UserError(f"{self.who} changed '{name}' in place, which others read after it. Work on a copy.")
        made = self._checked(made, lengths, asked)
        if self._together is not None:
            options = {name: value for name, value in given.items() if name not in asked}
            self._try_alone(made.detach(), asked, options)
        return made

    @torch.no_grad()
    def _try_alone(self, made: Tensor, asked: Mapping[str, Tensor], options: Mapping[str, Any]) -> None:
        """Says once where the first items have another value without those that follow them: what a micro-batch holds
        would then change the loss."""
        cut = _boundary(len(made), [asked[name] for name in GROUPS if name in asked])
        if cut is None or any(len(tensor) != len(made) for tensor in asked.values()):
            return
        advice, self._together = self._together, None
        few = {name: tensor[:cut].detach() for name, tensor in asked.items()}
        before = made[:cut]
        with self._guest.turn():
            try:
                alone = self.function(**few, **options).to(before)
                others = (alone - before).abs() > 1e-5 + 1e-3 * before.abs()
            except Exception as error:
                said = f"raises {blamed(error)} for the first {cut} of {len(made)} items"
            else:
                if not bool(others.any()):
                    return
                item = int(torch.nonzero(others)[0])
                said = (
                    f"gives {float(before[item]):.6g} for item {item} of {len(made)}, and {float(alone[item]):.6g} "
                    f"where only the first {cut} are there"
                )
        log.warning(
            f"{self.who} {said}: its items depend on one another, so --train.micro_tokens and the number of ranks "
            f"change the result. {advice}"
        )

    def _checked(self, made: object, lengths: Mapping[str, int], asked: Mapping[str, Tensor]) -> Tensor:
        wanted = " or ".join(f"[{size}] = [{length}]" for size, length in lengths.items())
        if not isinstance(made, Tensor):
            raise UserError(f"{self.who} gave {type(made).__name__}; expected a tensor {wanted}, not reduced.")
        if not made.is_floating_point() or made.ndim != 1 or len(made) not in lengths.values():
            raise UserError(
                f"{self.who} gave {list(made.shape)} {str(made.dtype).removeprefix('torch.')}; expected {wanted} "
                "floating-point numbers, one for each item, not reduced."
            )
        if not bool(torch.isfinite(made).all()):
            first = int(torch.nonzero(~torch.isfinite(made.detach()))[0])
            values = ", ".join(
                f"{name} {float(x.detach()[first]):.6g}" for name, x in asked.items() if len(x) == len(made)
            )
            raise NonFiniteError(
                f"{self.who} gave {float(made.detach()[first])} at item {first} of {len(made)}, from {values}."
            )
        trained = [name for name, tensor in asked.items() if tensor.requires_grad]
        if trained and torch.is_grad_enabled() and not made.requires_grad:
            raise UserError(
                f"{self.who} gave numbers without a gradient with respect to {', '.join(trained)}, so nothing could be "
                "learnt. Is something detached?"
            )
        return made


def _boundary(count: int, groups: Sequence[Tensor]) -> int | None:
    """Where about half of the items end without parting those of one response or prompt; None where they cannot be."""
    parts = torch.zeros(max(0, count - 1), dtype=torch.bool)
    for group in groups:
        parts |= (group[1:] == group[:-1]).cpu()
    ends = 1 + torch.nonzero(~parts).flatten()
    return int(ends[(ends - count / 2).abs().argmin()]) if len(ends) else None


def own_function(
    spec: str,
    flag: str,
    there: Mapping[str, Quantity],
    given: Mapping[str, float],
    options: Mapping[str, Any],
    together: str | None = None,
) -> TensorFunction:
    """A user's function with its options, each from `given`, else from the method's own `options`, else its default;
    for `together` see `OwnFunction`. Raises ConfigError for one without any."""
    function = OwnFunction(spec, flag, there, together)
    own = {n: p.default for n, p in function.__signature__.parameters.items() if p.kind is p.KEYWORD_ONLY}
    found: dict[str, Any] = {}
    for name, default in own.items():
        if name in given:
            found[name] = _as_option(function, name, given[name], default)
        elif name in options:
            found[name] = options[name]
        elif default is not inspect.Parameter.empty:
            found[name] = default
        else:
            raise ConfigError(f"{function.who}: its option '{name}' has no default. Give it one, or {name}:NUMBER.")
    return TensorFunction(function, found)


def _as_option(function: OwnFunction, name: str, value: float, default: Any) -> Any:
    """The number as an option with that default has it."""
    if isinstance(default, bool) and value in (0, 1):
        return bool(value)
    if isinstance(default, int) and not isinstance(default, bool) and value.is_integer():
        return int(value)
    if default in (inspect.Parameter.empty, None) or type(default) is float:
        return value
    raise ConfigError(f"{name}:{value:g}: the default of '{name}' in {function.who} is {default!r}, no such number.")


def require_known(given: Mapping[str, float], flag: str, *functions: TensorFunction) -> None:
    """Raises ConfigError for an option that none of these functions has."""
    own = [name for function in functions for name in function.takes]
    for name, value in given.items():
        if name not in own:
            has = f"There are: {', '.join(own)}." if own else "There is none."
            raise ConfigError(f"{flag} {name}:{value:g}: no such option.{suggestion(name, own)} {has}")


def listed(there: Mapping[str, Quantity]) -> str:
    """Tensors with the letters of their lengths."""
    return ", ".join(f"{name} [{tensor.size}]" for name, tensor in there.items())
