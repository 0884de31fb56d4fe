"""Sliding windows per layer, from a config.json."""

from __future__ import annotations

from tgis_server.engines.native.config.config_file import ConfigFile

LAYER_TYPES = ("full_attention", "sliding_attention")


def windows_of_types(
    config: ConfigFile, types: list[str], window: int | None, num_layers: int
) -> tuple[int | None, ...]:
    """``window`` on the layers that ``types`` calls sliding."""
    if len(types) != num_layers or any(kind not in LAYER_TYPES for kind in types):
        raise config.fail(f"layer_types must name {' or '.join(LAYER_TYPES)} for each of the {num_layers} layers.")
    return tuple(window if kind == "sliding_attention" else None for kind in types)


def read_windows_between(config: ConfigFile, num_layers: int, interval: int) -> tuple[int | None, ...]:
    """``sliding_window`` on the layers that ``layer_types`` calls sliding; by default, all but each ``interval``-th."""
    window, types = config.optional_integer("sliding_window"), config.names("layer_types")
    if types is None:
        types = [LAYER_TYPES[(layer + 1) % interval != 0] for layer in range(num_layers)]
    return windows_of_types(config, types, window, num_layers)


def read_uniform_window(config: ConfigFile, num_layers: int) -> tuple[int | None, ...]:
    """``sliding_window`` on all layers, as in Mistral and Phi-3, whose classes ignore ``layer_types``."""
    window = config.optional_integer("sliding_window")
    types = config.names("layer_types")
    if types is not None and any(kind != LAYER_TYPES[window is not None] for kind in types):
        raise config.fail(
            f"with sliding_window {window}, the native engine supports this family only if all layer_types are "
            f"{LAYER_TYPES[window is not None]}."
        )
    return (window,) * num_layers


def read_windows_from(config: ConfigFile, num_layers: int) -> tuple[int | None, ...]:
    """``sliding_window`` on layers that ``layer_types`` calls sliding; by default, those from ``max_window_layers``."""
    window, types = config.optional_integer("sliding_window"), config.names("layer_types")
    if types is None:
        first = config.integer("max_window_layers", at_least=0)
        types = [LAYER_TYPES[layer >= first] for layer in range(num_layers)]
    return windows_of_types(config, types, window, num_layers)


def read_qwen_windows(config: ConfigFile, num_layers: int) -> tuple[int | None, ...]:
    """``sliding_window`` on the layers that ``layer_types`` calls sliding.

    Without ``layer_types``, all layers except the first ``max_window_layers`` have the window.
    """
    window = config.optional_integer("sliding_window") if config.flag("use_sliding_window") else None
    types = config.names("layer_types")
    if types is None:
        first = config.integer("max_window_layers", at_least=0)
        return tuple(window if layer >= first else None for layer in range(num_layers))
    windows = windows_of_types(config, types, window, num_layers)
    if window is None and "sliding_attention" in types:
        raise config.fail(
            "layer_types names sliding_attention, but use_sliding_window is not true or sliding_window is null."
        )
    return windows
