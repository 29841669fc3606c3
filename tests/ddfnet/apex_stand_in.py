"""A stand-in for apex.amp: what the toolkit uses of it, with apex's behaviour, on the CPU.

Casts are torch's: where the real one patches functions of torch, this one leaves a region of autocast open.
"""

import contextlib
import sys
import types

import torch

FIRST_SCALE = 2.0**16


def install(monkeypatch) -> types.SimpleNamespace:
    """Makes `import apex.amp` find the stand-in, which the CPU may use. Returns its state and what it was asked."""
    state = types.SimpleNamespace(
        casts=contextlib.ExitStack(),
        scale=FIRST_SCALE,
        unskipped=0,
        skipped=0,
        initialized=[],
        registered=[],
        delayed=[],
    )

    def initialize(model, optimizer, opt_level, verbosity):
        assert not isinstance(model, torch.nn.parallel.DistributedDataParallel)
        state.initialized.append((model, optimizer, opt_level))
        state.casts.enter_context(torch.autocast('cpu', torch.bfloat16))
        own_step = optimizer.step
        optimizer.step = lambda: own_step()  # as apex wraps it
        return model, optimizer

    @contextlib.contextmanager
    def scale_loss(loss, optimizer, delay_unscale=False):
        state.delayed.append(delay_unscale)
        yield loss.float() * state.scale
        if delay_unscale:
            return
        gradients = [p.grad for group in optimizer.param_groups for p in group['params'] if p.grad is not None]
        for gradient in gradients:
            gradient /= state.scale
        if all(gradient.isfinite().all() for gradient in gradients):
            state.unskipped += 1
            return
        state.scale /= 2
        state.unskipped = 0
        own_step = optimizer.step

        def skip_once():
            optimizer.step = own_step
            state.skipped += 1

        optimizer.step = skip_once

    def load_state_dict(saved):
        state.scale, state.unskipped = saved['loss_scaler0']['loss_scale'], saved['loss_scaler0']['unskipped']

    amp = types.ModuleType('apex.amp')
    amp.__dict__.update(
        initialize=initialize,
        scale_loss=scale_loss,
        register_half_function=lambda module, name: state.registered.append(getattr(module, name)),
        state_dict=lambda: {'loss_scaler0': {'loss_scale': state.scale, 'unskipped': state.unskipped}},
        load_state_dict=load_state_dict,
    )
    apex = types.ModuleType('apex')
    apex.__dict__.update(amp=amp, __path__=[])
    monkeypatch.setitem(sys.modules, 'apex', apex)
    monkeypatch.setitem(sys.modules, 'apex.amp', amp)
    monkeypatch.setattr('ddfnet.training.scaling._APEX_DEVICES', ('cpu',))
    return state
