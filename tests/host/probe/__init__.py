"""A pack with one output node, which keeps what reaches it: eyes for the host tests."""

SEEN = {}


class SkyReelsV2TestProbe:
    RETURN_TYPES = ()
    FUNCTION = "keep"
    CATEGORY = "testing"
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls):  # noqa: N802
        return {"required": {"value": ("*",), "name": ("STRING",)}}

    @classmethod
    def VALIDATE_INPUTS(cls, input_types):  # noqa: N802
        return True

    def keep(self, value, name):
        SEEN[name] = value
        return ()


NODE_CLASS_MAPPINGS = {"SkyReelsV2TestProbe": SkyReelsV2TestProbe}
