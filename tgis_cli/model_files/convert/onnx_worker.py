"""The exporter's process, with the exporter's packages first on its path.

``python -m tgis_cli.model_files.convert.onnx_worker ORDER``

Without those packages, it only computes logits with our own transformers, for comparison. ``onnx.py`` starts it and
reads JSON lines from stdout; other lines are output of libraries::

    {"step": SENTENCE}                  the next step
    {"difference": NUMBER}              success: the largest difference between two logits
    {"failed": REASON, "errno": ...}    failure
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from tgis_server.child import leave_hangups_to_parent
from tgis_server.model_files import read_json

TOLERANCE = 1e-2  # relative to the largest logit; usual differences: 1e-6 from float32, 1e-3 from GELU's approximation
CPU = "CPUExecutionProvider"
PROMPT = (1, 2, 3, 5, 7)  # token ids that are in every vocabulary
REFERENCE, RESULT = "logits.npy", "model"
ROPE_KEYS = ("rope_theta", "partial_rotary_factor")  # top-level keys of the config before version 5


def emit(**event: Any) -> None:
    print(json.dumps(event), flush=True)


def lay_out_model(model_dir: Path, directory: Path) -> None:
    """Lay out the model for transformers 4, which ignores keys that version 5 writes and would use defaults instead.

    Raises:
        ValueError: the config cannot be expressed for version 4.
    """
    directory.mkdir()
    for path in model_dir.iterdir():
        if path.name != "config.json":
            (directory / path.name).symlink_to(path.resolve())
    config = read_json(model_dir / "config.json")
    if rope := config.pop("rope_parameters", None):
        if any(isinstance(value, dict) for value in rope.values()):
            raise ValueError("its rope_parameters differ by layer, which the exporter's transformers 4 cannot read")
        config |= {name: rope[name] for name in ROPE_KEYS if name in rope}
        if rope.get("rope_type", "default") != "default":
            config["rope_scaling"] = {name: value for name, value in rope.items() if name not in ROPE_KEYS}
    (directory / "config.json").write_text(json.dumps(config))


def make_inputs(config: Any) -> dict[str, Any]:
    import torch

    ids = torch.tensor([PROMPT])
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    return inputs | ({"decoder_input_ids": ids[:, :2]} if config.is_encoder_decoder else {})


def compute_logits(model_dir: Path) -> Any:
    """The logits of the prompt, computed by whichever version of transformers is installed."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM

    config = AutoConfig.from_pretrained(model_dir)
    kind = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    model = kind.from_pretrained(model_dir, dtype=torch.float32).eval()
    with torch.inference_mode():
        return model(**make_inputs(config)).logits.numpy()


def export(order: dict[str, Any], config: Any, source: Path, target: Path) -> None:
    """Write the graphs, and optimize them if requested."""
    from optimum.exporters.onnx import main_export  # type: ignore[import-not-found]  # not in our environment

    emit(step=f"exporting {order['model_dir']}")
    main_export(
        str(source),
        target,
        task="text2text-generation-with-past" if config.is_encoder_decoder else "text-generation-with-past",
        # The last pass merges an encoder-decoder's decoders; in other models it only removes copies of tied weights.
        no_post_process=config.is_encoder_decoder and not order["merge_graphs"],
        do_validation=False,  # compare() validates the final result
        local_files_only=True,
    )
    if order["optimize"]:
        import torch
        from optimum.onnxruntime import AutoOptimizationConfig, ORTOptimizer  # type: ignore[import-not-found]

        has_gpu = torch.cuda.is_available() if order["provider"] is None else order["provider"] != CPU
        level = AutoOptimizationConfig.O3(for_gpu=True) if has_gpu else AutoOptimizationConfig.O1()
        emit(step=f"optimizing, level {'O3' if has_gpu else 'O1'}")
        optimized = target / "optimized"
        ORTOptimizer.from_pretrained(load(order, config, target)).optimize(level, optimized, file_suffix=None)
        for old in target.glob("*.onnx*"):
            old.unlink()
        for made in optimized.iterdir():
            os.replace(made, target / made.name)
        optimized.rmdir()


def load(order: dict[str, Any], config: Any, target: Path) -> Any:
    from optimum.onnxruntime import ORTModelForCausalLM, ORTModelForSeq2SeqLM

    if config.is_encoder_decoder:
        return ORTModelForSeq2SeqLM.from_pretrained(target, provider=CPU, use_merged=order["merge_graphs"])
    return ORTModelForCausalLM.from_pretrained(target, provider=CPU)


def compare(order: dict[str, Any], config: Any, directory: Path) -> float:
    """The largest difference between the logits of the export and of the model.

    Raises:
        ValueError: it is too large.
    """
    import numpy as np

    emit(step="comparing logits with the model's")
    reference = directory / REFERENCE
    expected = np.load(reference) if reference.exists() else compute_logits(directory / "source")
    made = load(order, config, directory / RESULT)(**make_inputs(config)).logits.numpy(force=True)
    difference = float(np.abs(made - expected).max())
    if not difference <= TOLERANCE * max(1.0, float(np.abs(expected).max())):  # NaN counts as a difference
        raise ValueError(f"the exported model's logits differ by {difference:.3g} from the expected ones")
    return difference


def run(order: dict[str, Any]) -> None:
    model_dir, directory = Path(order["model_dir"]), Path(order["directory"])
    if order["only_reference"]:
        import numpy as np

        emit(step="computing logits with transformers for comparison")
        np.save(directory / REFERENCE, compute_logits(model_dir))
        return
    from transformers import AutoConfig

    source = directory / "source"
    lay_out_model(model_dir, source)
    config = AutoConfig.from_pretrained(source)
    export(order, config, source, directory / RESULT)
    emit(difference=compare(order, config, directory))


def main(order: dict[str, Any]) -> int:
    try:
        run(order)
    except Exception as error:  # noqa: BLE001  the libraries raise anything
        import traceback

        traceback.print_exc()
        reason = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
        emit(failed=reason.rstrip(".:"), errno=getattr(error, "errno", None))
        return 1
    return 0


if __name__ == "__main__":
    leave_hangups_to_parent()
    sys.exit(main(json.loads(sys.argv[1])))
