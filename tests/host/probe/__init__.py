"""A pack of nodes for the host tests: eyes for a link, any value for one, a model that fails."""

import itertools

import torch

SEEN = {}
GIVEN = {}


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


class SkyReelsV2TestGiver:
    """Whatever `GIVEN` has under a name, to any input."""

    RETURN_TYPES = ("*",)
    FUNCTION = "give"
    CATEGORY = "testing"

    @classmethod
    def INPUT_TYPES(cls):  # noqa: N802
        return {"required": {"name": ("STRING",)}}

    def give(self, name):
        return (GIVEN[name],)


class SkyReelsV2TestFailure:
    """The model, which fails after its forward number `call` and each after it.

    "no room for two" is out of memory where a forward is of several prompts.
    """

    RETURN_TYPES = ("MODEL",)
    FUNCTION = "patch"
    CATEGORY = "testing"
    ERRORS = {
        "error": RuntimeError,
        "out of memory": torch.OutOfMemoryError,
        "no room for two": torch.OutOfMemoryError,
    }

    @classmethod
    def INPUT_TYPES(cls):  # noqa: N802
        return {"required": {"model": ("MODEL",), "error": (list(cls.ERRORS),), "call": ("INT",)}}

    def patch(self, model, error, call):
        import comfy.patcher_extension

        numbers = itertools.count(1)

        def fail_late(executor, x, *args, **kwargs):
            out = executor(x, *args, **kwargs)
            if next(numbers) >= call and (error != "no room for two" or len(x) > 1):
                raise self.ERRORS[error]("as the test wants it")
            return out

        model = model.clone()
        kind = comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL
        model.add_wrapper_with_key(kind, "failing", fail_late)
        return (model,)


class ScriptedWords:
    """An engine of words that sees pictures and always says `answer`."""

    RETURN_TYPES = ("SKYREELS_V2_WORDS",)
    FUNCTION = "make"
    CATEGORY = "testing"

    @classmethod
    def INPUT_TYPES(cls):  # noqa: N802
        return {"required": {"answer": ("STRING",)}}

    def make(self, answer):
        from tiny_words import ScriptedEngine

        return (ScriptedEngine(Repeated(answer), name="the test's engine"),)


class Repeated(str):
    """An answer to every call."""

    def __getitem__(self, index):
        return str(self)


NODE_CLASS_MAPPINGS = {
    "ScriptedWords": ScriptedWords,
    "SkyReelsV2TestProbe": SkyReelsV2TestProbe,
    "SkyReelsV2TestGiver": SkyReelsV2TestGiver,
    "SkyReelsV2TestFailure": SkyReelsV2TestFailure,
}
