"""A drawing `NAME-light.svg` brings `NAME-dark.svg` along: one figure, one number, one image for each mode."""

from docutils import nodes
from sphinx.transforms import SphinxTransform


class BothModes(SphinxTransform):
    """Puts the dark image beside the light one, each with the class that shows it in its mode."""

    default_priority = 400

    def apply(self, **_options):
        for image in list(self.document.findall(nodes.image)):
            if image["uri"].endswith("-light.svg"):
                pair = nodes.container()  # beside the caption itself, the theme would hide that with the dark image
                for mode in ("light", "dark"):
                    one = image.deepcopy()
                    one["uri"] = image["uri"].removesuffix("-light.svg") + f"-{mode}.svg"
                    one["classes"] += [f"only-{mode}", "no-scaled-link"]
                    pair += one
                image.replace_self(pair)


def setup(app):
    app.add_transform(BothModes)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
