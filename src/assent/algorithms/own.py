"""Losses, objectives and estimators of advantages that a user wrote: FILE.py:function in place of one of the tables."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from assent.errors import ConfigError, NonFiniteError, UserError
from assent.functions import load_function
from assent.guest import Guest, blamed, ends_programs
from assent.losses.functions import TensorFunction, inputs_of
from assent.names import suggestion

POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


class OwnFunction:
    """A user's function as the tables' own are called. Its positional parameters are the tensors that it asks for, by
    name; its keyword-only ones are options."""

    def __init__(self, spec: str, flag: str, sizes: Mapping[str, str]) -> None:
        """`sizes` are the tensors that there are, and the letter of their length. Raises ConfigError, with the `flag`
        that it was given by, for what is no such function."""
        self.spec, self.sizes = spec, sizes
        self.who = f"{flag} {spec}"
        self._guest = Guest()
        with self._guest.turn():
            self.function = load_function(spec, flag)
        try:
            self.__signature__ = inspect.signature(self.function)
        except (TypeError, ValueError):
            raise ConfigError(f"{self.who} has no signature that Python can read; wrap it in a function.") from None
        there = ", ".join(f"{name} [{size}]" for name, size in sizes.items())
        for name, parameter in self.__signature__.parameters.items():
            if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                raise ConfigError(
                    f"{self.who}: *{name} does not say which tensors it asks for. Name them as parameters; there are: "
                    f"{there}."
                )
            if parameter.kind in POSITIONAL and name not in sizes:
                raise ConfigError(
                    f"{self.who}: there is no tensor '{name}'.{suggestion(name, sizes)} There are: {there}. An option "
                    "of the function stands behind a * in its parameters."
                )
        if not inputs_of(self):
            raise ConfigError(f"{self.who} asks for no tensor. There are: {there}.")

    def __call__(self, *tensors: Tensor, **named: Any) -> Tensor:
        """Raises UserError where the function raises or gives anything but one number for each item, NonFiniteError
        where one of these is not finite."""
        given = self.__signature__.bind(*tensors, **named).arguments
        lengths = {self.sizes[name]: len(given[name]) for name in inputs_of(self)}
        if not any(lengths.values()):  # a micro-batch that only keeps a rank in step
            return next(iter(given.values())) * 0.0
        with self._guest.turn():
            try:
                made = self.function(*tensors, **named)
            except BaseException as error:
                if not isinstance(error, Exception) and not ends_programs(error):
                    raise
                raise UserError(f"{self.who} raised {blamed(error)}.") from error
        return self._checked(made, lengths, given)

    def _checked(self, made: object, lengths: Mapping[str, int], given: Mapping[str, Any]) -> Tensor:
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
                f"{name} {float(given[name][first]):.6g}"
                for name in inputs_of(self)
                if len(given[name]) == len(made) and given[name].ndim == 1
            )
            raise NonFiniteError(f"{self.who} gave {float(made[first])} at item {first} of {len(made)}, from {values}.")
        trained = [name for name in inputs_of(self) if given[name].requires_grad]
        if trained and torch.is_grad_enabled() and not made.requires_grad:
            raise UserError(
                f"{self.who} gave numbers without a gradient with respect to {', '.join(trained)}, so nothing could be "
                "learnt. Is something detached?"
            )
        return made


def own_function(spec: str, flag: str, sizes: Mapping[str, str], options: Mapping[str, Any]) -> TensorFunction:
    """A user's function, with those of `options` that it has; others of its options keep their own defaults. Raises
    ConfigError for an option without any."""
    function = OwnFunction(spec, flag, sizes)
    given: dict[str, Any] = {}
    for name, parameter in function.__signature__.parameters.items():
        if parameter.kind is not parameter.KEYWORD_ONLY:
            continue
        if name in options:
            given[name] = options[name]
        elif parameter.default is parameter.empty:
            raise ConfigError(
                f"{function.who}: its option '{name}' has no default, and is none of: {', '.join(options)}."
            )
    return TensorFunction(function, given)
