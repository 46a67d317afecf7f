"""Modules of PyTorch as learners.

A state is arrays and plain values, nothing is pickled: an optimizer's state is JSON in which each tensor is the name of
an array.

Source: https://docs.pytorch.org/docs/stable/notes/randomness.html
"""

from __future__ import annotations

import contextlib
import copy
import inspect
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from headrace.arrays import Array
from headrace.errors import DeclarationError, LearnError
from headrace.learn.adapters.estimator import class_name, refuse_other_meaning, sorted_classes
from headrace.learn.adapters.network import Coding, Network, Outputs, Scale, matching, row_shape
from headrace.learn.base import Method, State, as_json, largest_in

# What a loss takes for labels, and what makes probabilities of the outputs it judges; by class and by function.
_LOSSES: dict[str, tuple[Coding, Scale | None]] = {
    "CrossEntropyLoss": ("integers", "softmax"),
    "cross_entropy": ("integers", "softmax"),
    "NLLLoss": ("integers", "exp"),
    "nll_loss": ("integers", "exp"),
    "MultiMarginLoss": ("integers", None),
    "multi_margin_loss": ("integers", None),
    "BCEWithLogitsLoss": ("binary", "sigmoid"),
    "binary_cross_entropy_with_logits": ("binary", "sigmoid"),
    "BCELoss": ("binary", "as they are"),
    "binary_cross_entropy": ("binary", "as they are"),
}
_OPTIMIZER = "optimizer"
_ARRAY = "tensor"


class TorchLearner(Network):
    """A module with its optimizer and its loss.

    Each cut is one step of the optimizer, or one for every ``batch_size`` rows. What is kept: parameters, buffers, the
    optimizer's state, and the state of the generator that Dropout draws from, which is this learner's own. Learning and
    predicting run on one thread: on the CPU one process repeats another's bits. On a GPU, deterministic algorithms are
    asked for where there are any; sums of the others may differ in their last bits from run to run.

    Args:
        module: copied, never changed.
        optimizer: made of the module's parameters and copied with them, or a function that makes one of parameters.
        loss: a module or a function, as ``loss(outputs, targets)``; targets are int64 of shape (n,) for
            `CrossEntropyLoss` and the like, else float of shape (n, 1).
        classes: every label there is, for a classifier.
        shape: of one row, such as (1, 28, 28); a network that begins with `torch.nn.Linear` says it.
        batch_size: rows of one step.
        epochs: how often each cut is learned.
        seed: of the generator.
        pretrained: it predicts before it has learned here.

    Raises:
        DeclarationError: the optimizer has other parameters than the module, the outputs do not fit, or its state
            cannot be kept.
    """

    def __init__(
        self,
        module: Any,
        *,
        optimizer: Any,
        loss: Any,
        classes: Iterable[Any] | None = None,
        shape: tuple[int, ...] | None = None,
        batch_size: int | None = None,
        epochs: int = 1,
        seed: int = 0,
        pretrained: bool = False,
    ) -> None:
        import torch

        name = f"the PyTorch module «{type(module).__name__}»"
        self._module, self._optimizer, self._loss = _copied(module, optimizer, loss, name)
        first = next(self._module.parameters())
        self._device = first.device
        outputs = _meaning(self._loss, classes, name)
        shape = row_shape(_first_width(self._module, name) if shape is None else shape, name)
        dtype = to_array(first[..., :0]).dtype if first.dtype in (torch.float32, torch.float64) else np.float32
        learned = pretrained or bool(self._optimizer.state)
        offers = frozenset[Method]({"pinned", "largest", "adopt", "declared_with"})
        super().__init__(
            name, outputs, shape, dtype, batch_size=batch_size, epochs=epochs, learned=learned, offers=offers
        )
        self._float = first.dtype
        self._generator = torch.Generator().manual_seed(seed).get_state()
        self._cuda_generator = None
        if self._device.type == "cuda":
            self._cuda_generator = torch.Generator(self._device).manual_seed(seed).get_state()
        outputs.check_number(self._tried(), name)
        self._declared = {
            **_described(self._module, self._optimizer, self._loss),
            "seed": seed,
        }

    def _tried(self) -> int:
        """Return how many outputs two rows of zeros get, and whether the module writes into what it is given."""
        import torch

        rows = torch.zeros((2, *self._shape), dtype=self._float, device=self._device)
        self._module.eval()
        try:
            with self._determined(kept=False), torch.no_grad():
                found = self._module(rows)
        except Exception as error:  # whatever a module raises on rows of another shape
            raise DeclarationError(
                f"{self._name} does not take rows of shape {self._shape}: {error}", advice="Say shape=(…)."
            ) from error
        if found.ndim > 2 or len(found) != 2:
            raise DeclarationError(f"{self._name} gives {found.shape} for 2 rows", advice="One vector a row is needed.")
        self._writes = rows._version > 0
        return math.prod(found.shape[1:])

    def _update(self, X: Array, y: Array, weights: Array | None) -> None:
        import torch

        kind = torch.int64 if self._outputs.coding == "integers" else self._float
        rows = self._tensor(X, self._float)
        targets = self._tensor(y, kind)
        given = None if weights is None else self._tensor(weights, self._float)

        def closure() -> Any:
            self._optimizer.zero_grad()
            outputs = self._module(rows)
            if self._outputs.coding != "integers":
                outputs = outputs.reshape(len(rows), 1)
            loss = self._loss(outputs, targets) if given is None else _weighted(self._loss, outputs, targets, given)
            loss.backward()
            return loss

        with self._determined(), torch.enable_grad():
            self._module.train()
            try:
                self._optimizer.step(closure)
            except (ValueError, RuntimeError) as error:
                raise LearnError(f"{self._name} cannot learn {len(X)} rows: {error}") from error

    def _forward(self, X: Array) -> Array:
        import torch

        if self._module.training:
            self._module.eval()
        with self._determined(kept=False), torch.inference_mode():
            outputs = self._module(self._tensor(X, self._float, copied=self._writes))
            return to_array(outputs.float()).reshape(len(X), -1)

    def _tensor(self, array: Array, dtype: Any, *, copied: bool = True) -> Any:
        """On the device. Copied, where a layer may write into its input (ReLU(inplace=True)), which is the caller's."""
        import torch

        if copied or not array.flags.writeable:
            return torch.tensor(array, dtype=dtype, device=self._device)
        return torch.from_numpy(array).to(self._device, dtype)

    @contextlib.contextmanager
    def _determined(self, *, kept: bool = True) -> Iterator[None]:
        """Run on one thread, with this learner's generator as PyTorch's; both are put back afterwards.

        Args:
            kept: what is drawn inside is drawn from this learner's generator for good.
        """
        import torch

        threads, before = torch.get_num_threads(), torch.get_rng_state()
        torch.set_num_threads(1)
        torch.set_rng_state(self._generator)
        try:
            if self._cuda_generator is None:
                yield
            else:
                with _generator(self._device), _deterministic():
                    torch.cuda.set_rng_state(self._cuda_generator, self._device)
                    yield
                    if kept:
                        self._cuda_generator = torch.cuda.get_rng_state(self._device)
            if kept:
                self._generator = torch.get_rng_state()
        finally:
            torch.set_rng_state(before)
            torch.set_num_threads(threads)

    @staticmethod
    def pinned() -> contextlib.AbstractContextManager[None]:
        """Keep PyTorch on one thread, around many calls."""
        return one_torch_thread()

    def largest(self) -> float:
        """Return the largest absolute number of its weights; infinite where one is."""
        held = [*self._module.parameters(), *self._module.buffers()]
        return largest_in(tensor.detach().float().cpu().numpy() for tensor in held if tensor.is_floating_point())

    def state(self) -> State:
        own: State = {"generator": np.array(self._generator.numpy()), "learned": self._learned}
        if self._cuda_generator is not None:
            own["cuda_generator"] = np.array(self._cuda_generator.numpy())
        return {**own, **to_state(self._module, self._optimizer)}

    def restore(self, state: State) -> None:
        """Take over a ``state``.

        Raises:
            LearnError: it is one of another network.
        """
        own = self.state()
        fixed = {name: value for name, value in own.items() if not name.startswith("optimizer")}
        given = {name: value for name, value in state.items() if not name.startswith("optimizer")}
        matching(given, fixed, self._name)
        from_state(state, self._module, self._optimizer, self._name)
        self._take_generators(state)
        self._learned = bool(state["learned"])

    def _take_generators(self, state: State) -> None:
        import torch

        self._generator = torch.from_numpy(np.array(state["generator"]))
        if self._cuda_generator is not None:
            self._cuda_generator = torch.from_numpy(np.array(state["cuda_generator"]))

    def adopt(self, state: State, parameters: Mapping[str, Any]) -> None:
        """Take over the state of the same module with the same loss and classes, which was to learn otherwise.

        Another optimizer, or one whose options change what it keeps of each weight, begins without what it knew.

        Raises:
            LearnError: module, loss, classes or the shape of a row differ; nothing has been changed then.
        """
        now = as_json(self.parameters())
        refuse_other_meaning(parameters, now, _goes_on, self._name)
        groups, generators = self._optimizer.state_dict()["param_groups"], (self._generator, self._cuda_generator)
        before = self._optimizer_of(parameters["optimizer"])
        from_state(state, self._module, before, self._name)
        self._optimizer.state.clear()
        if _keeps_state(parameters["optimizer"], now["optimizer"]):
            self._optimizer.load_state_dict({"state": before.state_dict()["state"], "param_groups": groups})
        self._take_generators(state)
        if parameters["seed"] != now["seed"]:
            self._generator, self._cuda_generator = generators
        self._learned = bool(state["learned"])

    def declared_with(self, parameters: Mapping[str, Any]) -> TorchLearner:
        """Return a learner of the same module that was to learn otherwise.

        Raises:
            LearnError: module, loss, classes or the shape of a row differ, or the optimizer is not one of PyTorch.
        """
        refuse_other_meaning(parameters, as_json(self.parameters()), _goes_on, self._name)
        module, optimizer, loss = _together(self._module, self._optimizer, self._loss)
        for name, parameter in module.named_parameters():
            parameter.requires_grad_(bool(parameters["parameters"][name][2]))
        return TorchLearner(
            module,
            optimizer=_made_optimizer(parameters["optimizer"], module, optimizer, self._name),
            loss=loss,
            classes=self._labels,
            shape=self._shape,
            **{option: parameters[option] for option in ("batch_size", "epochs", "seed")},
            pretrained=self._learned,
        )

    def _optimizer_of(self, described: Mapping[str, Any]) -> Any:
        return _made_optimizer(described, self._module, self._optimizer, self._name)

    def save_to(self, directory: Path) -> list[str]:
        """Write files that PyTorch loads without Headrace, and say their names.

        ``state_dict.pt`` for ``torch.load(…, weights_only=True)``: {"module": …, "optimizer": …}, each for its
        ``load_state_dict``. ``module.txt``: what the module was.
        """
        import torch

        directory.mkdir(parents=True, exist_ok=True)
        both = {"module": self._module.state_dict(), "optimizer": self._optimizer.state_dict()}
        torch.save(both, directory / "state_dict.pt")
        (directory / "module.txt").write_text(f"{self._module!r}\n")
        return ["state_dict.pt", "module.txt"]

    def __deepcopy__(self, memo: dict[int, Any]) -> TorchLearner:
        made = copy.copy(self)
        made._module, made._optimizer, made._loss = _together(self._module, self._optimizer, self._loss)
        return made

    def __repr__(self) -> str:
        size = sum(parameter.numel() for parameter in self._module.parameters())
        return f"{type(self._module).__name__}({size:,} parameters)"


@contextlib.contextmanager
def one_torch_thread() -> Iterator[None]:
    """PyTorch computes on one thread inside: another number of threads gives other bits."""
    import torch

    before = torch.get_num_threads()
    if before == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def drawing_from(seed: int, device: Any) -> Iterator[None]:
    """PyTorch's own generators begin at a seed inside, and are as they were afterwards."""
    import torch

    with _generator(device):
        torch.manual_seed(seed)
        yield


@contextlib.contextmanager
def _deterministic() -> Iterator[None]:
    """On a GPU algorithms are chosen that repeat their bits, where there are any; on a CPU one thread is enough."""
    import torch

    before, warn = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warn)


@contextlib.contextmanager
def _generator(device: Any) -> Iterator[None]:
    """Put the process' generators back to what they were, afterwards."""
    import torch

    before = torch.get_rng_state()
    cuda = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
    try:
        yield
    finally:
        torch.set_rng_state(before)
        if cuda is not None:
            torch.cuda.set_rng_state(cuda, device)


def _copied(module: Any, optimizer: Any, loss: Any, name: str) -> tuple[Any, Any, Any]:
    """Module, optimizer and loss of our own; the optimizer's parameters are the copied module's."""
    import torch

    if not isinstance(module, torch.nn.Module):
        raise DeclarationError(f"{type(module).__name__} is no torch.nn.Module", advice="Give the network itself.")
    lazy = [
        key for key, parameter in module.named_parameters() if isinstance(parameter, torch.nn.UninitializedParameter)
    ]
    if lazy or next(module.parameters(), None) is None:
        raise DeclarationError(f"{name} has no parameters yet", advice="Run one batch through lazy layers before.")
    if not callable(loss):
        raise DeclarationError(f"loss={loss!r} of {name}", advice="Give torch.nn.CrossEntropyLoss() or a function.")
    try:
        own, made, judged = _together(module, optimizer if _is_optimizer(optimizer) else None, loss)
    except Exception as error:  # what modules of one's own raise, too
        raise DeclarationError(f"{name} cannot be copied: {error}", advice="Let copy.deepcopy copy it.") from error
    if made is None:
        made = optimizer(own.parameters()) if callable(optimizer) else None
        if not _is_optimizer(made):
            raise DeclarationError(
                f"optimizer={optimizer!r} of {name}", advice="optimizer=torch.optim.Adam(module.parameters(), 1e-3)"
            )
    held = {id(parameter) for parameter in own.parameters()}
    if not all(id(parameter) in held for group in made.param_groups for parameter in group["params"]):
        raise DeclarationError(
            f"the optimizer of {name} has parameters that are not the module's",
            advice="Make it of module.parameters(), after the module is complete.",
        )
    if hasattr(judged, "to"):
        judged.to(next(own.parameters()).device)
    return own, made, judged


def _together(module: Any, optimizer: Any, loss: Any) -> tuple[Any, Any, Any]:
    """Copies that belong together: the optimizer's parameters are the copied module's."""
    memo: dict[int, Any] = {}
    own, made, judged = copy.deepcopy((module, optimizer, loss), memo)
    for key, value in () if made is None else vars(optimizer).items():  # PyTorch leaves out what LBFGS needs
        if key not in vars(made):
            setattr(made, key, copy.deepcopy(value, memo))
    return own, made, judged


def _is_optimizer(value: Any) -> bool:
    import torch

    return isinstance(value, torch.optim.Optimizer)


def _goes_on(path: tuple[str, ...]) -> bool:
    """Return whether a parameter only says how learning goes on."""
    whether_it_learns = path[0] == "parameters" and path[-1] == "2"
    return path[0] in ("optimizer", "batch_size", "epochs", "seed") or whether_it_learns


def _made_optimizer(described: Mapping[str, Any], module: Any, now: Any, name: str) -> Any:
    """Return an optimizer of a module's parameters as it was described, which has kept nothing yet.

    Args:
        now: the one that is declared now: its class may be anybody's.

    Raises:
        LearnError: it is not PyTorch's, or PyTorch makes another one of it.
    """
    import torch

    kind: Any = type(now)
    if described["class"] != class_name(now):
        kind = getattr(torch.optim, described["class"].rpartition(".")[2], None)
    parameters = list(module.parameters())
    groups = [{**group, "params": [parameters[place] for place in group["params"]]} for group in described["groups"]]
    try:
        made = kind(groups)
        found = as_json(_described_optimizer(made, module))
    except Exception as error:  # what an optimizer of somebody's own raises, too
        raise LearnError(f"the optimizer {described['class']} of {name} cannot be made again: {error}") from error
    if found != described:
        raise LearnError(f"the optimizer {described['class']} of {name} cannot be made again with its options")
    return made


def _keeps_state(before: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """Return whether what an optimizer knows of each weight is the same kind of thing under its other options."""
    if before["class"] != now["class"] or len(before["groups"]) != len(now["groups"]):
        return False
    return all(
        was.get(key) == group.get(key)
        or key in ("lr", "initial_lr", "weight_decay")
        or (
            key != "params"
            and _numbers(was.get(key)) is not None
            and _numbers(was.get(key)) == _numbers(group.get(key))
        )
        for was, group in zip(before["groups"], now["groups"], strict=True)
        for key in {*was, *group}
    )


def _numbers(option: Any) -> list[bool] | None:
    """Return which numbers of an option are not 0, what turns a part of an optimizer on; None of other options."""
    found = option if isinstance(option, list) else [option]
    if not all(isinstance(number, int | float) and not isinstance(number, bool) for number in found):
        return None
    return [bool(number) for number in found]


def _first_width(module: Any, name: str) -> tuple[int, ...]:
    import torch

    for layer in module.modules():
        if next(layer.parameters(recurse=False), None) is not None:
            if isinstance(layer, torch.nn.Linear):
                return (layer.in_features,)
            break
    raise DeclarationError(
        f"{name} does not say the shape of its rows", advice="hr.adapters.torch(…, shape=(1, 28, 28))"
    )


def _meaning(loss: Any, classes: Iterable[Any] | None, name: str) -> Outputs:
    """Return what the outputs mean, from the loss and the classes."""
    kind = _called(loss)
    known = _LOSSES.get(kind)
    if getattr(loss, "reduction", "mean") == "none":
        raise DeclarationError(f"the loss of {name} is not reduced to a number", advice='reduction="mean"')
    if classes is None:
        if known is not None:
            raise DeclarationError(
                f"the loss {kind} of {name} tells classes apart, and they are not named",
                advice="Say classes=[…] in app.model(…).",
            )
        return Outputs(None, "number")
    labels = sorted_classes(classes, name)
    if known is None:
        raise DeclarationError(
            f"what the loss {kind} of {name} makes of labels is not known",
            advice=f"Take name of {', '.join(name for name in _LOSSES if name[0].isupper())}.",
        )
    coding, scale = known
    return Outputs(labels, coding, scale, 0.5 if scale == "as they are" else 0.0)


def _called(loss: Any) -> str:
    return str(getattr(loss, "__name__", type(loss).__name__))


def _weighted(loss: Any, outputs: Any, targets: Any, weights: Any) -> Any:
    """Return the loss with each row's share multiplied by its weight; without weights it is what ``loss`` gives."""
    reduction = getattr(loss, "reduction", "mean")
    of_class: Any = getattr(loss, "weight", None)
    if hasattr(loss, "reduction"):
        loss.reduction = "none"
        try:
            each = loss(outputs, targets)
        finally:
            loss.reduction = reduction
    elif "reduction" in inspect.signature(loss).parameters:
        each = loss(outputs, targets, reduction="none")
    else:
        raise LearnError(f"the loss {_called(loss)} takes no weights", advice="Give it a parameter reduction.")
    total = (each.reshape(len(weights), -1).mean(dim=1) * weights).sum()
    if reduction == "sum":
        return total
    by_class = of_class is not None and targets.ndim == 1
    return total / (of_class[targets].sum() if by_class else len(weights))


def _described(module: Any, optimizer: Any, loss: Any) -> dict[str, Any]:
    """Return the declaration as JSON values, without weights; functions are named, not compared."""
    sizes = {
        key: [list(parameter.shape), str(parameter.dtype), parameter.requires_grad]
        for key, parameter in module.named_parameters()
    }
    return {
        "module": _text(module),
        "parameters": sizes,
        "optimizer": _described_optimizer(optimizer, module),
        "loss": _text(loss) if hasattr(loss, "reduction") else _called(loss),
    }


def _described_optimizer(optimizer: Any, module: Any) -> dict[str, Any]:
    """Return class and options; parameters by their places in the module."""
    places = {id(parameter): i for i, parameter in enumerate(module.parameters())}
    groups = [
        {
            key: [places[id(parameter)] for parameter in value] if key == "params" else _plain(value)
            for key, value in group.items()
        }
        for group in optimizer.param_groups
    ]
    return {"class": class_name(optimizer), "groups": groups}


def _text(value: Any) -> str:
    """Return what a value prints as, without addresses in memory."""
    return re.sub(r" at 0x[0-9a-fA-F]+", "", repr(value))


def _plain(value: Any) -> Any:
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value if value is None or isinstance(value, bool | int | float | str) else _text(value)


def to_state(module: Any, optimizer: Any) -> State:
    """Return every parameter and buffer by its name, and the optimizer's state.

    Raises:
        LearnError: the optimizer keeps what is no number, text, tensor, list or dictionary.
    """
    state: State = {f"module.{name}": to_array(tensor) for name, tensor in _tensors(module)}
    arrays: dict[str, Array] = {}
    tree = _flattened(optimizer.state_dict(), _OPTIMIZER, arrays)
    return {**state, **arrays, _OPTIMIZER: json.dumps(tree)}


def from_state(state: State, module: Any, optimizer: Any, name: str) -> None:
    """Read what `to_state` has written into a module and an optimizer declared alike.

    Raises:
        LearnError: the optimizer's state is one of other parameters; nothing has been changed then.
    """
    import torch

    tree = _rebuilt(json.loads(str(state[_OPTIMIZER])), state)
    groups = [len(group["params"]) for group in tree["param_groups"]]
    own = [len(group["params"]) for group in optimizer.param_groups]
    if groups != own:
        raise LearnError(f"a stored optimizer has parameters {groups} in its groups, the one of {name} {own}")
    with torch.no_grad():
        for key, tensor in _tensors(module):
            tensor.copy_(_tensor(np.asarray(state[f"module.{key}"]), str(tensor.dtype)))
    optimizer.load_state_dict(tree)


def to_array(tensor: Any) -> Array:
    """Return a copy of a tensor; types that NumPy lacks, as their bits."""
    tensor = tensor.detach().cpu()
    bits = _bits().get(tensor.dtype)
    return np.array((tensor if bits is None else tensor.view(bits)).numpy())


@cache
def _bits() -> dict[Any, Any]:
    """Integers of the size of each type that NumPy lacks."""
    import torch

    float8 = [getattr(torch, name) for name in dir(torch) if name.startswith("float8_")]
    return {torch.bfloat16: torch.int16, **dict.fromkeys(float8, torch.uint8)}


def _tensor(array: Array, dtype: str) -> Any:
    import torch

    tensor = torch.from_numpy(np.array(array))
    kind = getattr(torch, dtype.removeprefix("torch."))
    return tensor if tensor.dtype == kind else tensor.view(kind)


def _tensors(module: Any) -> Iterator[tuple[str, Any]]:
    """Return parameters and buffers, those too that ``state_dict`` leaves out."""
    return chain(module.named_parameters(), module.named_buffers())


def _flattened(value: Any, path: str, arrays: dict[str, Array]) -> Any:
    """JSON values; tensors go to ``arrays`` under their path. Pairs stand for dictionaries: keys may be numbers."""
    if hasattr(value, "detach"):
        arrays[path] = to_array(value)
        return {_ARRAY: path, "dtype": str(value.dtype)}
    if isinstance(value, dict):
        return {"items": [[key, _flattened(item, f"{path}.{key}", arrays)] for key, item in value.items()]}
    if isinstance(value, list | tuple):
        listed = [_flattened(item, f"{path}.{i}", arrays) for i, item in enumerate(value)]
        return {"tuple": listed} if isinstance(value, tuple) else listed
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise LearnError(
        f"the optimizer keeps a {type(value).__name__} under «{path}»", advice="Use an optimizer of torch.optim."
    )


def _rebuilt(node: Any, state: State) -> Any:
    if isinstance(node, list):
        return [_rebuilt(item, state) for item in node]
    if not isinstance(node, dict):
        return node
    if _ARRAY in node:
        return _tensor(np.asarray(state[node[_ARRAY]]), node["dtype"])
    if "tuple" in node:
        return tuple(_rebuilt(item, state) for item in node["tuple"])
    return {key: _rebuilt(item, state) for key, item in node["items"]}
