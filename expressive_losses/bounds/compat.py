"""Run auto_LiRPA on current torch, from outside, without editing it.

The release on PyPI is 0.3 (2022), written for torch 1.8 to 1.12. Everything it misses from later torch and
numpy is put back here: for the moment of its import, for the moment it traces a network, or on its own
classes. Nothing of torch, numpy, `logging` or `warnings` stays changed. The releases of its repository
(0.7.x) run on current torch as they are; they only get the repairs named "any release" below.

    from expressive_losses.bounds import compat
    auto_LiRPA = compat.load()          # everywhere, in place of `import auto_LiRPA`
"""

import copy
import functools
import importlib
import inspect
import logging
import sys
import types
import warnings
from contextlib import ExitStack, contextmanager

import torch
from packaging.version import Version

from expressive_losses.errors import UserError

INSTALL_HINT = "`make install`, or `pip install --no-deps auto_LiRPA==0.3`"

# The graph optimiser that 0.3 calls was driven by these settings under torch 1.12. With shape inference
# x.size(0) is folded into the batch size of the dummy input, which is wrong for every other batch size; with
# inlining, a torch.autograd.Function is no longer one node that a custom operator can bound.
EXPORT_SETTINGS = {"export_onnx_opset_version": 12, "onnx_shape_inference": False, "autograd_inlining": False}

_loaded = None  # the patched module, once load() succeeded


def load():
    """Import auto_LiRPA and make it work with the installed torch and numpy.

    Idempotent and cheap after the first call.

    Returns:
        The `auto_LiRPA` module.

    Raises:
        UserError: it is not installed, or what is installed cannot be imported.
    """
    global _loaded
    if _loaded is None:
        lirpa = _import()
        if Version(lirpa.__version__) < Version("0.4"):
            _repair_0_3(lirpa)
        _repair_any_release(lirpa)
        _loaded = lirpa
    return _loaded


def lirpa_version():
    """The release of auto_LiRPA in use.

    Returns:
        packaging.version.Version: comparable, e.g. `lirpa_version() < Version("0.4")`.

    Raises:
        UserError: as for `load`.
    """
    return Version(load().__version__)


# ------------------------------------------------------------------------------------------------- importing


def _import():
    """Import auto_LiRPA with the vanished names in place; a failure becomes one line saying what to type."""
    try:
        with ExitStack() as stack:
            stack.enter_context(_logging_and_warnings_kept())
            stack.enter_context(_numpy_arraysetops())
            stack.enter_context(_onnx_set_opset_version())
            lirpa = importlib.import_module("auto_LiRPA")
        # A folder of that name (a stray checkout) imports as an empty namespace package.
        missing = [name for name in ("__version__", "BoundedModule") if not hasattr(lirpa, name)]
        if missing:
            raise ImportError(f"{list(lirpa.__path__)} has no {' and no '.join(missing)}")
    except Exception as error:  # whatever an unsuitable release raises: to the user it is one problem
        if isinstance(error, ModuleNotFoundError) and error.name == "auto_LiRPA":
            raise UserError(f"auto_LiRPA is not installed. Type {INSTALL_HINT}.") from None
        if isinstance(error, ModuleNotFoundError) and not error.name.startswith("auto_LiRPA"):
            hint = f"`make install`, or `pip install {error.name.split('.')[0]}`"
        else:
            hint = INSTALL_HINT
        reason = " ".join(str(error).split())
        raise UserError(f"auto_LiRPA is installed but cannot be imported ({reason}). Type {hint}.") from error
    return lirpa


@contextmanager
def _logging_and_warnings_kept():
    """Undo auto_LiRPA's logging.basicConfig and warnings.simplefilter("once"), the application's business.

    Nor can the user act on what is warned of while it is imported (it uses torch.jit.script, deprecated). Its
    simplefilter puts itself before any filter of ours, so such warnings are caught by recording them.
    """
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    try:
        with warnings.catch_warnings(record=True):
            warnings.simplefilter("ignore")
            yield
    finally:
        for handler in [handler for handler in root.handlers if handler not in handlers]:
            root.removeHandler(handler)
            # Not closed: a StreamHandler owns nothing, its stream is the program's own stdout.
        root.setLevel(level)


@contextmanager
def _numpy_arraysetops():
    """`from numpy.lib.arraysetops import isin` (0.3): the module is gone in numpy 2."""
    import numpy

    name = "numpy.lib.arraysetops"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # late numpy 1.x warns that it will go
            importlib.import_module(name)
        yield
        return
    except ImportError:
        pass
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].isin = numpy.isin
    try:
        yield
    finally:
        del sys.modules[name]


@contextmanager
def _onnx_set_opset_version():
    """`from torch.onnx.symbolic_helper import _set_opset_version` (0.3): gone in torch 1.13.

    0.3 keeps the no-op it got; the opset is set where it traces, see `_export_settings`.
    """
    import torch.onnx.symbolic_helper as helper

    if hasattr(helper, "_set_opset_version"):
        yield
        return
    helper._set_opset_version = lambda version: None
    try:
        yield
    finally:
        del helper._set_opset_version


# -------------------------------------------------------------------------------------------- repairs of 0.3


def _repair_0_3(lirpa):
    general = importlib.import_module("auto_LiRPA.bound_general")
    operators = importlib.import_module("auto_LiRPA.bound_ops")
    general.parse_module = _tracing_as_torch_1_12(general.parse_module)
    lirpa.BoundedModule._named_members = _named_members
    lirpa.BoundDataParallel._named_members = _data_parallel_named_members
    if not hasattr(torch, "_six"):
        # It overrides this with torch 1.8's code, which asks torch._six.
        lirpa.BoundedModule.register_parameter = torch.nn.Module.register_parameter
    relu = operators.BoundRelu
    relu.init_opt_parameters = _dropping_unused_alpha_indices(relu.init_opt_parameters)
    lirpa.BoundedModule.check_IBP_intermediate = _check_ibp_intermediate


def _tracing_as_torch_1_12(parse_module):
    """Let 0.3 see the graph that the exporter of torch 1.12 would have given it."""

    def parse(*args, **kwargs):
        with _export_settings(), _indexable_graph_nodes():
            return parse_module(*args, **kwargs)

    return parse


@contextmanager
def _export_settings():
    exporter = _exporter_globals()
    old = {name: getattr(exporter, name) for name in EXPORT_SETTINGS if hasattr(exporter, name)}
    try:
        for name in old:
            setattr(exporter, name, EXPORT_SETTINGS[name])
        yield
    finally:
        for name, value in old.items():
            setattr(exporter, name, value)


def _exporter_globals():
    """The settings object of the TorchScript exporter, which moved in torch 2.9."""
    try:
        return importlib.import_module("torch.onnx._internal.torchscript_exporter._globals").GLOBALS
    except ImportError:
        return importlib.import_module("torch.onnx._globals").GLOBALS


@contextmanager
def _indexable_graph_nodes():
    """`node["attribute"]` on a torch graph node: gone in torch 1.13."""
    node_type = torch._C.Node
    if hasattr(node_type, "__getitem__"):
        yield
        return
    node_type.__getitem__ = lambda node, name: getattr(node, node.kindOf(name))(name)
    try:
        yield
    finally:
        del node_type.__getitem__


def _named_members(self, *args, **kwargs):
    """torch's own walk, with the names of the wrapped network.

    The copy in 0.3 does not know `remove_duplicate`, with which torch calls it today.
    """
    for name, member in torch.nn.Module._named_members(self, *args, **kwargs):
        yield self.node_name_map.get(name, name), member


def _data_parallel_named_members(self, *args, **kwargs):
    return self.module._named_members(*args, **kwargs)


def _check_ibp_intermediate(self, node):
    """Bound a ReLU, a negation or a chain of these by intervals, from the bounds of what the chain reads.

    0.3 enters the result as that source's own interval too. Whatever else reads the source, relu(h) beside relu(-h) or
    h beside tanh(relu(h)), is then bounded over a wrong interval: CROWN's values are no bounds. (Mended in 0.7.x.)
    """
    chain = []
    while not (hasattr(node, "lower") and hasattr(node, "upper")):
        if type(node) not in self.ibp_intermediate:
            return False
        chain.append(node)
        node = node.inputs[0]
    for one in reversed(chain):
        self.IBP_general(one)
    return True


def _dropping_unused_alpha_indices(init_opt_parameters):
    """Repair alpha-CROWN where most of a layer is unstable, a bug of 0.3 on any torch.

    Above `minimum_sparsity` (90 % unstable) it stores alpha for the whole layer, but forgets to drop the
    indices of the sparse storage unless it is verbose, and later fails with a shape mismatch.
    """

    def init(self, start_nodes):
        init_opt_parameters(self, start_nodes)
        if self.alpha_indices is not None:
            stored = self.alpha_indices[0].numel()
            neurons = self.inputs[0].lower[0].numel()
            if stored > self.options.get("minimum_sparsity", 0.9) * neurons:
                self.alpha_indices = None

    return init


# ----------------------------------------------------------------------------------------------- any release


def _repair_any_release(lirpa):
    relu = importlib.import_module("auto_LiRPA.bound_ops").BoundRelu
    if not _clamp_passes_gradient_at_limits():
        mask = inspect.getattr_static(relu, "_relu_mask_alpha").__func__
        relu._relu_mask_alpha = staticmethod(_with_gradient_at_limits(mask))
    lirpa.BoundedModule.__deepcopy__ = _deepcopy
    _silence_parts(importlib.import_module("auto_LiRPA.backward_bound"))


def _silence_parts(backward):
    """Where a layer's neurons are bounded in parts, it prints a line and a bar for each layer, and warns of sums."""

    def unless_about_parts(say):
        return lambda *args, **kwargs: None if str(args[0]).startswith("Batched CROWN") else say(*args, **kwargs)

    backward.print = unless_about_parts(print)
    backward.tqdm = functools.partial(backward.tqdm, disable=True)
    backward.warnings = types.SimpleNamespace(warn=unless_about_parts(warnings.warn))


def _clamp_passes_gradient_at_limits():
    """True up to torch 2.13; from 2.14 on the gradient of clamp at its limits is 0."""
    limits = torch.tensor([0.0, 1.0], requires_grad=True)
    with torch.enable_grad():  # the first use may be under no_grad
        (gradient,) = torch.autograd.grad(torch.clamp(limits, min=0.0, max=1.0).sum(), limits)
    return bool((gradient == 1).all())


def _with_gradient_at_limits(relu_mask_alpha):
    """Give the slopes of unstable ReLUs the gradient that clamp had before torch 2.14, not touching values.

    alpha starts at exactly 0 or 1 and is clamped to [0, 1] in the graph. Without a gradient there it never
    moves, and alpha-CROWN silently returns the bounds of CROWN. Where a neuron is unstable the slope IS the
    clamped alpha, so adding `alpha - alpha.detach()`, which is zero, is all that is needed.
    """

    def mask(lower, upper, lb_lower_d, ub_lower_d, leaky_alpha=0.0):
        options = {"leaky_alpha": leaky_alpha} if leaky_alpha else {}  # 0.3 does not know the argument
        slopes = [None if alpha is None else alpha.detach() for alpha in (lb_lower_d, ub_lower_d)]
        *slopes, zero_coeffs = relu_mask_alpha(lower, upper, *slopes, **options)
        unstable = (lower < 0) & (upper > 0)

        def connect(slope, alpha):
            if alpha is None:
                return None
            free = unstable & (alpha >= leaky_alpha) & (alpha <= 1)
            return slope + (alpha - alpha.detach()) * free

        return connect(slopes[0], lb_lower_d), connect(slopes[1], ub_lower_d), zero_coeffs

    return mask


def _deepcopy(self, memo):
    """copy.deepcopy for a BoundedModule, which keeps on its nodes what the last pass computed.

    Tensors that are part of an autograd graph cannot be copied, and a BoundedTensor neither (0.3 calls
    a constructor that it does not have). Such left-overs are copied by value, cut off from the graph.
    """
    bounded_tensor = load().BoundedTensor
    for tensor in _tensors_held_by(self, set()):
        if tensor.grad_fn is not None or isinstance(tensor, bounded_tensor):
            # deepcopy takes what memo holds under an object's id for its copy.
            memo[id(tensor)] = tensor.detach().clone().as_subclass(torch.Tensor)
    new = self.__class__.__new__(self.__class__)
    memo[id(self)] = new
    new.__dict__.update(copy.deepcopy(self.__dict__, memo))
    return new


def _tensors_held_by(thing, seen):
    """All tensors reachable from a bounded network through containers and auto_LiRPA's own objects."""
    if id(thing) in seen:
        return
    seen.add(id(thing))
    if isinstance(thing, torch.Tensor):
        yield thing
    elif isinstance(thing, dict):
        for value in thing.values():
            yield from _tensors_held_by(value, seen)
    elif isinstance(thing, (list, tuple, set)):
        for value in thing:
            yield from _tensors_held_by(value, seen)
    elif type(thing).__module__.split(".")[0] == "auto_LiRPA" and hasattr(thing, "__dict__"):
        yield from _tensors_held_by(vars(thing), seen)
