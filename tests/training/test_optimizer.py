"""Groups and learning rates of AdamW, against their closed forms."""

import pytest

from clipmill.errors import UserError
from tests.training.world import tiny_model, tiny_stage
from training.optimizer import build_optimizer, lr_factor, set_lr
from training.stage_config import OptimizerConfig


def test_matrices_alone_decay_and_layers_of_time_have_their_own_rate() -> None:
    unet = tiny_model(tiny_stage()).unet
    optimizer = build_optimizer(
        unet, OptimizerConfig(lr=3e-3, spatial_lr=1e-4, weight_decay=0.1, betas=(0.8, 0.95), eps=1e-6)
    )
    names = {id(parameter): name for name, parameter in unet.named_parameters()}
    temporal = {
        name for name in unet.state_dict() if ".temporal." in name or ".mix." in name or "ids_embedding" in name
    }
    defaults = {name: optimizer.defaults[name] for name in ("lr", "betas", "eps", "fused")}
    assert defaults == {"lr": 3e-3, "betas": (0.8, 0.95), "eps": 1e-6, "fused": False}
    seen = set()
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            name = names[id(parameter)]
            seen.add(name)
            assert group["base_lr"] == (3e-3 if name in temporal else 1e-4)
            assert group["weight_decay"] == (0.1 if parameter.ndim > 1 else 0.0)
    assert seen == set(names.values())
    assert any("mix" in name for name in seen)


def test_the_rate_rises_stays_and_may_fall() -> None:
    constant = OptimizerConfig(warmup_steps=10)
    assert [lr_factor(step, 100, constant) for step in (0, 4, 9, 10, 99)] == [0.1, 0.5, 1.0, 1.0, 1.0]
    cosine = OptimizerConfig(warmup_steps=10, decay="cosine")
    assert [lr_factor(step, 110, cosine) for step in (10, 60, 110)] == pytest.approx([1.0, 0.5, 0.0])
    assert lr_factor(0, 10, OptimizerConfig(warmup_steps=0)) == 1.0
    assert lr_factor(3, 3, OptimizerConfig(warmup_steps=2, decay="cosine")) == pytest.approx(0.0)
    assert lr_factor(3, 3, OptimizerConfig(warmup_steps=3, decay="cosine")) == 1.0
    optimizer = build_optimizer(tiny_model(tiny_stage()).unet, OptimizerConfig(lr=2e-3))
    set_lr(optimizer, 0.5)
    assert {group["lr"] for group in optimizer.param_groups} == {1e-3}


def test_nothing_to_train_is_an_error_that_names_the_setting() -> None:
    unet = tiny_model(tiny_stage()).unet.requires_grad_(False)
    with pytest.raises(UserError, match=r"^the network has no trainable parameters; check model\.trainable$"):
        build_optimizer(unet, OptimizerConfig())
