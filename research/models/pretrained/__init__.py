"""How do weights that others trained get into a model?

    pretrained = plan("resnet50", "", "resnet50.safetensors")   # reads the header
    model = registry.create("resnet50", num_classes=3, variant=pretrained.variant)
    variables, report = pretrained.load(model, variables)

`formats` reads the files, `names` and `matching` find the arrays, `adapt` turns them into ours, `sources` knows the
official files, `hub` fetches one from the Hugging Face hub, and `export` writes what timm and this package read.
"""

from research.models.pretrained.formats import read
from research.models.pretrained.loading import Pretrained, plan

__all__ = ["Pretrained", "plan", "read"]
