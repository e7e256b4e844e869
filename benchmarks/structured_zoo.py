"""The networks of benchmarks/structured_graph.py: torchvision's, timm's and transformers' that are installed, in full
size (images of 64 pixels where the network takes them), and the small ones of the tests."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "pruning"))
Network = Callable[[], tuple[nn.Module, tuple[Any, ...]]]


def networks() -> dict[str, Network]:
    """By name what makes a network and its inputs."""
    found: dict[str, Network] = {}
    try:
        from torchvision import models
    except ImportError:
        print("without torchvision", file=sys.stderr)
    else:
        names = (
            "resnet18 resnet50 vgg11_bn mobilenet_v2 mobilenet_v3_large efficientnet_b0 densenet121 googlenet "
            "squeezenet1_1 mnasnet1_0 convnext_tiny regnet_y_400mf resnext50_32x4d shufflenet_v2_x1_0 swin_t vit_b_16"
        )
        for name in names.split():
            how: dict[str, Any] = {"weights": None}
            how |= {"aux_logits": False, "init_weights": False} if name == "googlenet" else {}
            how |= {"image_size": 64} if name == "vit_b_16" else {}
            found[name] = lambda n=name, h=how: (getattr(models, n)(**h), (torch.randn(2, 3, 64, 64),))
    try:
        import timm
    except ImportError:
        print("without timm", file=sys.stderr)
    else:
        for name in ("vit_small_patch16_224", "swin_tiny_patch4_window7_224"):
            how = {"img_size": 64, "window_size": 4} if "swin" in name else {"img_size": 64}
            found[f"timm/{name}"] = lambda n=name, h=how: (timm.create_model(n, **h), (torch.randn(2, 3, 64, 64),))
    try:
        import transformers as t
    except ImportError:
        print("without transformers", file=sys.stderr)
    else:
        small = {"vocab_size": 500, "hidden_size": 256, "num_hidden_layers": 4, "intermediate_size": 512}
        words = lambda: (torch.randint(0, 500, (2, 16)),)  # noqa: E731
        bert = t.BertConfig(**small, num_attention_heads=8)
        llama = t.LlamaConfig(**small, num_attention_heads=8, num_key_value_heads=4)
        gpt2 = t.GPT2Config(vocab_size=500, n_embd=256, n_layer=4, n_head=8, bos_token_id=0, eos_token_id=0)
        found["transformers/bert"] = lambda: (First(t.BertModel(bert)), words())
        found["transformers/llama-grouped-queries"] = lambda: (First(t.LlamaForCausalLM(llama)), words())
        found["transformers/gpt2"] = lambda: (First(t.GPT2LMHeadModel(gpt2)), words())
    from zoo_attention import ATTENTION
    from zoo_convolution import CONVOLUTION, IMAGE

    for name, factory in CONVOLUTION.items():
        found[f"tests/{name}"] = lambda f=factory: (f(), (torch.randn(IMAGE),))
    for name, (factory, inputs) in ATTENTION.items():
        found[f"tests/{name}"] = lambda f=factory, i=inputs: (f(), i())
    return found


class First(nn.Module):
    """The first tensor of what a model of transformers puts out."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, words: Tensor) -> Tensor:
        return self.model(words, use_cache=False)[0]
