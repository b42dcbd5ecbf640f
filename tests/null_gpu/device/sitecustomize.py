"""Loaded by every Python process on the null GPU: it has no cuDNN, and PyTorch is told so at its import."""

import sys
from importlib.abc import MetaPathFinder
from importlib.util import find_spec


class _WithoutCudnn(MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name != "torch":
            return None
        sys.meta_path.remove(self)
        spec = find_spec("torch")
        execute = spec.loader.exec_module

        def execute_and_configure(module):
            execute(module)
            module.backends.cudnn.enabled = False
            module.backends.cuda.enable_cudnn_sdp(False)
            # PyTorch compiles its kernel when it is first called, by a library that asks for more of a driver
            # than there is; SigLIP's weights are drawn with it in transformers.
            module.Tensor.erfinv_ = lambda tensor: tensor

        spec.loader.exec_module = execute_and_configure
        return spec


sys.meta_path.insert(0, _WithoutCudnn())
