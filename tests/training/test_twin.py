"""The training forward equals diffusers' own, for the sizes and caption lengths it is trained on."""

from __future__ import annotations

import pytest
import torch

from training import data, text, twin


@pytest.mark.parametrize(("width", "height"), list(data.BUCKETS))
@pytest.mark.parametrize("tokens", [32, 20, 40])
def test_twin_equals_diffusers(width, height, tokens):
    torch.manual_seed(0)
    model = twin.build_transformer(text_width=24).eval()
    torch.nn.init.normal_(model.all_final_layer["2-1"].linear.weight, std=0.1)
    length = -(-tokens // 32) * 32
    latents, t, features = torch.randn(2, 16, height // 8, width // 8), torch.rand(2), torch.randn(2, length, 24)
    padding = torch.zeros(2, length, dtype=torch.bool)
    padding[:, tokens:] = True
    with torch.no_grad():
        ours = twin.forward(model, latents, t, features, padding)
        theirs = model([x[:, None] for x in latents], t, [f[:tokens] for f in features], return_dict=False)[0]
    theirs = torch.stack(theirs).squeeze(2)
    assert theirs.abs().max() > 1
    assert (ours - theirs).abs().max() < 1e-4


def test_padding_on_the_right_does_not_change_the_features():
    """Training encodes padded captions without a mask; the engine encodes them unpadded."""
    torch.manual_seed(0)
    encoder = text.build_text_encoder().eval()
    ids, mask = text.pad([[5, 6, 7, 8]], 32)
    assert mask.sum() == 28
    with torch.no_grad():
        padded = encoder(ids, output_hidden_states=True).hidden_states[-2][0, :4]
        alone = encoder(ids[:, :4], output_hidden_states=True).hidden_states[-2][0]
    assert (padded - alone).abs().max() < 1e-5
