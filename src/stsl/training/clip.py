"""A small pair of image and text encoder that tells which caption fits a picture."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer, CLIPVisionConfig

from stsl.shapes import Image
from stsl.training.captions import Captions, make_text_encoder, token_ids
from stsl.training.data import Pictures
from stsl.training.export import SHARD, fresh, stored_as
from stsl.training.task import Inputs, Task
from stsl.training.vit import MEAN, STD, coloured, crops, lay_out, normalised


class CLIP(Task):
    """Images and captions whose embeddings agree where they belong together.

    Loss: cross-entropy over the batch in both directions, where every caption of the same words counts as right.

    The text encoder is locked, at the weights it begins with. Where it learns too, with few captions and a vision
    transformer that has seen nothing yet, both make all embeddings alike (the loss stays at the logarithm of the batch)
    and neither comes back. What a caption means is therefore learnt for whole captions: ask with the words that were
    trained on.

    Source: Radford et al. 2021, arXiv:2103.00020, Figure 3; equal captions as in Khosla et al. 2020, arXiv:2004.11362;
    a locked tower as in Zhai et al. 2022, arXiv:2111.07991, where it is the other one.

    Args:
        size: side of the images.
        tokenizer: of the captions.
        captions: what a picture is called.
        patch, width, depth, heads: of the vision transformer.
        text_width: of the text encoder.
    """

    def __init__(
        self,
        size: int,
        tokenizer: CLIPTokenizer,
        captions: Captions,
        *,
        patch: int = 8,
        width: int = 128,
        depth: int = 6,
        heads: int = 4,
        text_width: int = 96,
    ) -> None:
        super().__init__()
        self.tokenizer, self.captions, self.size = tokenizer, captions, size
        self.length = tokenizer.model_max_length
        vision = CLIPVisionConfig(
            image_size=size,
            patch_size=patch,
            hidden_size=width,
            intermediate_size=4 * width,
            num_hidden_layers=depth,
            num_attention_heads=heads,
        )
        text = make_text_encoder(tokenizer, self.length, text_width).config
        self.clip = CLIPModel(CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=64))
        for locked in (self.clip.text_model, self.clip.text_projection, self.clip.logit_scale):
            locked.requires_grad_(False)
        lay_out(self.clip.vision_model.embeddings.position_embedding.weight[1:])

    def parts(self, turn: str) -> Mapping[str, nn.Module]:
        return {"clip": self.clip}

    def draw(self, data: Pictures, rows: Tensor, source: torch.Generator) -> Inputs:
        x = coloured(crops(data.at(rows), (0.8, 1.0), self.size, source), 0.3, source)
        texts = [self.captions.draw(data.row(int(row)), source) for row in rows]
        return {"x": x, "ids": token_ids(self.tokenizer, texts, self.length)}

    def forward(self, inputs: Inputs, turn: str) -> dict[str, Tensor]:
        out = self.clip(input_ids=inputs["ids"], pixel_values=normalised(inputs["x"]))
        scores = out.logits_per_image.float()
        same = (inputs["ids"][:, None] == inputs["ids"][None]).all(-1).float()
        right = same / same.sum(1, keepdim=True)
        loss = F.cross_entropy(scores, right) + F.cross_entropy(scores.T, right)
        hits = same.gather(1, scores.argmax(1, keepdim=True)).mean()
        return {"loss": loss / 2, "accuracy": hits}

    def sheet(self, data: Any) -> Image | None:
        return None

    def save(self, folder: Path, data: Any, dtype: torch.dtype) -> None:
        steps = {
            "image_processor_type": "CLIPImageProcessor",
            "do_resize": True,
            "size": {"height": self.size, "width": self.size},
            "do_center_crop": False,
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "image_mean": MEAN,
            "image_std": STD,
        }
        with fresh(folder) as place, stored_as({"clip": self.clip}, dtype):
            self.clip.save_pretrained(place, max_shard_size=SHARD)
            self.tokenizer.save_pretrained(place)
            (place / "preprocessor_config.json").write_text(json.dumps(steps, indent=2) + "\n", encoding="utf-8")
