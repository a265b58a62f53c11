"""The methods that every data config offers, one word each: what adapts the backbone, and how.

The words are joined by commas after the name of a config, later ones changing earlier ones:
``--config=configs/scenes.py:sinewich_paper,no_lowpass``.

    sinewich            the default, by name: lean (k = 1, tokens only feed the clock), anchored
    zero                lean from the published start: up factor zero, frequencies around a hundred
    sinewich_paper      as published: 3 x 3 kernels, low-pass, task tokens in the windows, one clock
                        a layer
    no_clock            with either: learned frequencies without a clock net
    no_lowpass          with sinewich_paper: without the Gaussian (lean has none)
    no_sine             with either: without the sine: all tasks share one kernel
    independent_base    one kernel a task in place of a shared one, in the decoder too
    independent_decoder one kernel a task in the decoder
    lora                one LoRA that all tasks share
    lora_gain           that LoRA times a learned scalar a task
    lora_split          a LoRA of rank r / T for each task
    lora_task           a LoRA of rank r for each task
    sine_lora           Sine-LoRA: the sine of a LoRA at one fixed frequency
    mtlora              MTLoRA: shared LoRA, and a low-rank update a task beside it
    mtlora_plus         MTLoRA+: LoRA in patch merging as well, which is frozen then
    tadformer           TADFormer: task tokens and dynamic filters
    tadformer_static    the same with the static filters of the authors' release
    adapters            a bottleneck adapter a task (Pfeiffer), see also adapters.placement
    decoder_only        no adapters: heads on frozen features
    full_ft             everything trained from the pretrained backbone
    single_task         the same once for each task, one run after another in WORKDIR/<task>
    scratch             everything trained from a random start
"""

from __future__ import annotations

from typing import Any

# An anchored kernel has entries of order one and wants a higher rate than factors that start at
# zero; benchmarks/study_scenes.py holds the grids that measure it.
_PLAIN = {"task_lr_mult": 1.0}
# What the code that the published methods share leaves trainable beside adapters and decoder.
_GROUPS = ("norms", "patch_embed", "bias_table")
# The literature's decoder: nothing in it is shared or switched. Methods that are compared at equal
# parameters (the LoRA words, decoder_only) keep the switched decoder that all of them have.
_OWN_DECODERS = {"decoder_base": "independent"}
_MTLORA = {"trainable": (*_GROUPS, "merging"), **_OWN_DECODERS, **_PLAIN}
_PLUS = {"trainable": _GROUPS, **_OWN_DECODERS, **_PLAIN}

METHODS: dict[str, dict[str, Any]] = {
    "sinewich": {},
    "zero": {"start": "zero", **_PLAIN},
    "sinewich_paper": {
        "start": "zero",
        "kernel_size": 3,
        "lowpass": True,
        "tokens": "vpt",
        "frequency_scope": "layer",
        "trainable": _GROUPS,
        **_PLAIN,
    },
    "no_clock": {"clock": "free"},
    "no_lowpass": {"lowpass": False},
    "no_sine": {"method": "lora", "decoder_base": "shared", **_PLAIN},
    "independent_base": {"kernel_base": "independent", "decoder_base": "independent"},
    "independent_decoder": {"decoder_base": "independent"},
    "lora": {"method": "lora", **_PLAIN},
    "lora_gain": {"method": "lora_gain", **_PLAIN},
    "lora_split": {"method": "lora_split", **_PLAIN},
    "lora_task": {"method": "lora_task", **_PLAIN},
    "sine_lora": {"method": "sine_lora", **_PLAIN},
    "mtlora": {"method": "mtlora", **_MTLORA},
    "mtlora_plus": {"method": "mtlora_plus", **_PLUS},
    "tadformer": {"method": "tadformer", **_PLUS},
    "tadformer_static": {"method": "tadformer", "filter": "static", **_PLUS},
    "adapters": {"method": "adapters", **_PLAIN},
    "decoder_only": {"method": "decoder_only"},
    "full_ft": {"method": "full_ft", **_OWN_DECODERS},
    "single_task": {"method": "single_task", **_OWN_DECODERS},
    "scratch": {"method": "scratch"},
}
