"""Norms in plain torch, chosen by kind when the model is loaded."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from tgis_server.engines.native import spec
from tgis_server.engines.native.ops.api import Norm


class RmsNorm:
    """x / rms(x) * weight. Torch computes the mean in float32; the weight is applied after rounding, as in the
    checkpoints' original implementation.
    """

    def __init__(self, weight: Tensor, eps: float) -> None:
        self._weight = weight
        self._eps = eps

    def __call__(self, x: Tensor) -> Tensor:
        return functional.rms_norm(x, (x.shape[-1],), None, self._eps) * self._weight

    def add(self, residual: Tensor, x: Tensor, scale: float) -> Tensor:
        return self(residual.add_(x, alpha=scale))


class RmsNormPlusOne(RmsNorm):
    """Gemma's variant: the weight is 1 plus the stored value, and is applied before rounding."""

    def __init__(self, weight: Tensor, eps: float) -> None:
        super().__init__(1 + weight.float(), eps)

    def __call__(self, x: Tensor) -> Tensor:
        return super().__call__(x.float()).to(x.dtype)


class LayerNorm:
    """(x - mean(x)) / std(x) * weight + bias."""

    def __init__(self, weight: Tensor | None, bias: Tensor | None, eps: float) -> None:
        self._weight = weight
        self._bias = bias
        self._eps = eps

    def __call__(self, x: Tensor) -> Tensor:
        return functional.layer_norm(x, (x.shape[-1],), self._weight, self._bias, self._eps)

    def add(self, residual: Tensor, x: Tensor, scale: float) -> Tensor:
        return self(residual.add_(x, alpha=scale))


class LayerNormOfHeads(LayerNorm):
    """A LayerNorm with weights per head."""

    _weight: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        scaled = functional.layer_norm(x, (x.shape[-1],), None, None, self._eps) * self._weight
        return scaled if self._bias is None else scaled.add_(self._bias)


class NoNorm:
    """Stands in for a norm that a layer does not have."""

    def __call__(self, x: Tensor) -> Tensor:
        return x

    def add(self, residual: Tensor, x: Tensor, scale: float) -> Tensor:
        return residual.add_(x, alpha=scale)


RMS_NORMS = {"rms": RmsNorm, "rms_plus_one": RmsNormPlusOne}


def make_norm(kind: spec.Norm | None, weight: Tensor | None, bias: Tensor | None, eps: float) -> Norm:
    if kind is None:
        return NoNorm()
    if kind == "layer_plus_one" and weight is not None:
        weight = weight + 1
    if kind in ("layer", "layer_plus_one"):
        return (LayerNormOfHeads if weight is not None and weight.dim() > 1 else LayerNorm)(weight, bias, eps)
    assert weight is not None, "an RMS norm has a weight"
    assert bias is None, "an RMS norm has no bias"
    return RMS_NORMS[kind](weight, eps)
