"""A network in training -> the same network, whose frozen convolutions keep nothing for a gradient they never take."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.grad import conv2d_input

from infusion.base.edits import wrap_method


@contextmanager
def lean_convolutions(network: nn.Module) -> Iterator[None]:
    """Convolutions with frozen weights no longer keep their inputs, which torch does although only trained weights
    would need them. Nothing else changes: predictions and gradients are the same bits."""
    with ExitStack() as stack:
        for module in network.modules():
            if type(module) is nn.Conv2d and module.padding_mode == "zeros":
                stack.enter_context(wrap_method(module, "forward", partial(_forward, module)))
        yield


def _forward(module: nn.Conv2d, original: Callable[[Tensor], Tensor], states: Tensor) -> Tensor:
    trains = any(parameter.requires_grad for parameter in (module.weight, module.bias) if parameter is not None)
    if trains or not (torch.is_grad_enabled() and states.requires_grad):
        return original(states)
    options = (module.stride, module.padding, module.dilation, module.groups)
    return _Convolution.apply(states, module.weight, module.bias, options)


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, states: Tensor, weight: Tensor, bias: Tensor | None, options: Any) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.shape, ctx.options = states.shape, options
        return F.conv2d(states, weight, bias, *options)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        (weight,) = ctx.saved_tensors
        return conv2d_input(ctx.shape, weight, gradient, *ctx.options), None, None, None
