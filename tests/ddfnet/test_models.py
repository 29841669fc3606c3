"""DDF models: names, parameters and numbers of the official release, and what timm's ResNet offers."""

import re
import zlib

import numpy as np
import pytest
import timm
import torch

import ddf
import ddfnet
from tests.conftest import assert_golden, load_golden, set_golden_weights

PARAMETERS = {
    'ddf_mul_resnet50': 16_843_748,
    'ddf_mul_resnet101': 28_146_912,
    'ddf_mul_resnet152': 37_462_900,
    'ddf_add_resnet50': 16_843_748,
    'ddf_add_resnet101': 28_146_912,
    'ddf_add_resnet152': 37_462_900,
}


@pytest.mark.parametrize('name', PARAMETERS)
def test_parameter_count(name):
    model = timm.create_model(name, device='meta')
    assert sum(parameter.numel() for parameter in model.parameters()) == PARAMETERS[name]


@pytest.mark.parametrize('name', ['ddf_mul_resnet50', 'ddf_add_resnet50'])
def test_state_dict_is_the_official_one(name):
    model = timm.create_model(name, device='meta')
    listing = {
        key: [list(value.shape), str(value.dtype).removeprefix('torch.')] for key, value in model.state_dict().items()
    }
    official = load_golden(f'state_dict_{name}.json')
    assert list(listing) == list(official)
    assert listing == {key: [shape, dtype.removeprefix('torch.')] for key, (shape, dtype) in official.items()}


def golden_model() -> torch.nn.Module:
    model = timm.create_model('ddf_mul_resnet50', dtype=torch.float64)
    set_golden_weights(model)
    return model


def golden_input(seed: int, size: int) -> torch.Tensor:
    return torch.from_numpy(np.random.RandomState(seed).standard_normal((2, 3, size, size)))


def test_golden_evaluation(backend):
    numbers = load_golden('golden_ddf_mul_resnet50.npz')
    model = golden_model().eval()
    pooled = {}
    for stage in ('maxpool', 'layer1', 'layer2', 'layer3', 'layer4'):
        model.get_submodule(stage).register_forward_hook(
            lambda _module, _inputs, output, stage=stage: pooled.update({stage: output.mean((-2, -1))})
        )
    with torch.no_grad():
        assert_golden(model(golden_input(20210415, 64)), numbers['eval64_logits'])
        assert_golden(model(golden_input(20210414, 224)), numbers['eval224_logits'])
    for stage, mean in pooled.items():
        assert_golden(mean, numbers[f'eval224_pool_{stage}'])


def test_golden_training_step(backend):
    numbers = load_golden('golden_ddf_mul_resnet50.npz')
    model = golden_model().train()
    images = golden_input(20210415, 64).requires_grad_()
    logits = model(images)
    assert_golden(logits, numbers['train64_logits'])
    loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(numbers['train64_labels']))
    assert_golden(loss, numbers['train64_loss'])
    loss.backward()
    assert_golden(images.grad, numbers['train64_input_grad'])
    parameters = dict(model.named_parameters())
    assert list(parameters) == list(numbers['grad_keys'])
    gradients = {key: parameter.grad for key, parameter in parameters.items()}
    for key in (name.removeprefix('grad/') for name in numbers.files if name.startswith('grad/')):
        assert_golden(gradients[key], numbers[f'grad/{key}'])
    norms = torch.stack([gradient.norm() for gradient in gradients.values()])
    assert_golden(norms, numbers['grad_l2'])
    probes = torch.stack([(gradient * probe(key, gradient.shape)).sum() for key, gradient in gradients.items()])
    difference = probes - torch.from_numpy(numbers['grad_probe'])
    assert (difference.abs() <= 1e-9 * norms * norms.new_tensor([g.numel() for g in gradients.values()]).sqrt()).all()
    buffers = dict(model.named_buffers())
    buffer_norms = torch.stack([buffers[key].double().norm() for key in numbers['buffer_keys']])
    assert_golden(buffer_norms, numbers['buffer_l2_after_train_step'])


def probe(key: str, shape: torch.Size) -> torch.Tensor:
    seed = zlib.crc32(f'probe:{key}'.encode()) & 0xFFFFFFFF
    return torch.from_numpy(np.random.RandomState(seed).standard_normal(tuple(shape)))


@pytest.mark.parametrize('name', ['ddf_mul_resnet26', 'ddf_add_resnet26'])
def test_takes_what_timms_resnet_takes(name):
    assert name in timm.list_models('ddf_*')
    images = torch.randn(2, 1, 75, 90)
    model = timm.create_model(name, num_classes=7, in_chans=1, drop_path_rate=0.1, global_pool='catavgmax').eval()
    assert model(images).shape == (2, 7)
    features = timm.create_model(name, in_chans=1, features_only=True, output_stride=8).eval()(images)
    assert [tuple(feature.shape) for feature in features] == [
        (2, 64, 38, 45),
        (2, 256, 19, 23),
        (2, 512, 10, 12),
        (2, 1024, 10, 12),
        (2, 2048, 10, 12),
    ]
    half = timm.create_model(name, in_chans=1, num_classes=0, dtype=torch.bfloat16).eval()
    assert half(images.bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize('size', [33, 48, 65])
def test_any_input_size_trains(size):
    model = timm.create_model('ddf_mul_resnet26', num_classes=3).train()
    model(torch.randn(2, 3, size, size)).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_channels_last_equals_contiguous():
    model = timm.create_model('ddf_mul_resnet26', num_classes=5, zero_init_last=False).eval().double()
    images = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    expected = model(images)
    actual = model.to(memory_format=torch.channels_last)(images.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    'layer', ['bn1', 'act1', 'conv2', 'bn2', 'drop_block', 'act2', 'conv3', 'bn3', 'downsample', 'act3']
)
@pytest.mark.parametrize('training', [False, True])
def test_every_layer_of_a_block_is_called_where_it_is_hooked(training, layer):
    """Some are one call of the library otherwise."""
    torch.manual_seed(0)
    model = timm.create_model('ddf_mul_resnet26').train()
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        for _ in range(2):
            model(x)  # so that the statistics of every norm are its own
        expected = model.train(training)(x)
        seen = []
        getattr(model.layer2[0], layer).register_forward_hook(lambda *_: seen.append(layer))
        output = model(x)
    assert seen == [layer]
    torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-5)


def test_what_a_hook_keeps_of_the_last_convolution_is_not_overwritten():
    model, kept = timm.create_model('ddf_mul_resnet26').eval(), []
    convolution = model.layer1[0].conv3
    convolution.register_forward_hook(lambda _, inputs, output: kept.extend((*inputs, output)))
    with torch.no_grad():
        model(torch.randn(1, 3, 64, 64))
        given, output = kept
        convolution._forward_hooks.clear()
        assert torch.equal(output, convolution(given))


@pytest.mark.parametrize(
    'settings', [{'drop_path_rate': 0.5}, {'block_args': {'attn_layer': 'se'}}, {'avg_down': True}], ids=str
)
def test_blocks_with_other_layers_in_evaluation(settings):
    torch.manual_seed(0)
    model, x = timm.create_model('ddf_mul_resnet26', zero_init_last=False, **settings).eval(), torch.randn(1, 3, 64, 64)
    expected = model(x)  # with gradients, by the layers
    with torch.no_grad():
        torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('grad_mode', [torch.enable_grad, torch.no_grad], ids=['gradients', 'values'])
def test_features_through_fx(grad_mode):
    torch.manual_seed(0)
    model = timm.create_model('ddf_mul_resnet26', features_only=True).eval()
    traced = timm.create_model('ddf_mul_resnet26', features_only=True, feature_cls='fx').eval()
    traced.load_state_dict({f'graph_module.{name}': value for name, value in model.state_dict().items()})
    x = torch.randn(1, 3, 64, 64)
    with grad_mode():
        for feature, expected in zip(traced(x), model(x), strict=True):
            torch.testing.assert_close(feature, expected, rtol=1e-4, atol=1e-5)


def test_compiles_as_one_graph_in_evaluation():
    model, x = timm.create_model('ddf_mul_resnet26').eval(), torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        compiled = torch.compile(model, fullgraph=True, backend='aot_eager')
        torch.testing.assert_close(compiled(x), model(x), rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings('ignore:.*torch.jit')
def test_torchscript():
    model = timm.create_model('ddf_mul_resnet26', channels=(8, 8, 16, 16), zero_init_last=False).eval()
    images = torch.randn(2, 3, 33, 47)
    torch.testing.assert_close(torch.jit.script(model)(images), model(images))


def test_block_args_reach_the_filters():
    model = timm.create_model('ddf_mul_resnet26', device='meta', block_args={'head': 2, 'se_ratio': 0.3})
    filters = [module for module in model.modules() if isinstance(module, ddf.DDFPack)]
    assert len(filters) == 8
    assert {(pack.head, pack.kernel_combine) for pack in filters} == {(2, 'mul')}
    assert filters[0].channel_branch[1].out_channels == int(64 * 0.3)


def count_parameters(**block_args) -> int:
    model = timm.create_model('ddf_mul_resnet50', device='meta', block_args=block_args)
    return sum(parameter.numel() for parameter in model.parameters())


def test_layers_can_be_replaced_as_in_timm():
    model = timm.create_model('ddf_mul_resnet26', layers=(1, 1, 1, 2), device='meta')
    assert [len(getattr(model, f'layer{index}')) for index in (1, 2, 3, 4)] == [1, 1, 1, 2]


def test_parameter_counts_of_the_papers_ablations():
    published = {0.2: 16.8, 0.3: 18.1, 0.4: 19.4}  # millions, by se_ratio
    for se_ratio, millions in published.items():
        assert abs(count_parameters(se_ratio=se_ratio) / 1e6 - millions) < 0.05
    # widths of the 3x3 layers; a spatial branch has 9 filters of one tap per channel and 9 biases
    widths = [64] * 3 + [128] * 4 + [256] * 6 + [512] * 3
    of_spatial_branches = sum(9 * width + 9 for width in widths)
    of_channel_branches = sum(
        width * int(0.2 * width) + int(0.2 * width) + int(0.2 * width) * 9 * width + 2 * 9 * width for width in widths
    )
    assert count_parameters(branches='channel') == count_parameters() - of_spatial_branches
    assert count_parameters(branches='spatial') == count_parameters() - of_channel_branches


@pytest.mark.parametrize('name', ['ddf_mul_resnet26', 'ddf_add_resnet26'])
@pytest.mark.parametrize('branches', ['spatial', 'channel'])
def test_ablations_train(name, branches):
    torch.manual_seed(0)
    settings = {'branches': branches, 'se_ratio': 1.0}  # wide enough that no hidden layer starts with zeros alone
    model = timm.create_model(name, channels=(8, 8, 16, 16), zero_init_last=False, block_args=settings)
    model(torch.randn(2, 3, 33, 47)).square().sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in model.parameters())


@pytest.mark.parametrize(
    ('block_args', 'message'),
    [
        ({'branches': 'spacial'}, "branches must be 'both', 'spatial' or 'channel', got 'spacial'"),
        ({'branch': 'spatial'}, "block_args has no 'branch': did you mean branches?"),
        ({'stride': 2}, "block_args has no 'stride': it takes kernel_size, head, se_ratio"),
        ({'se_ratio': '0.3'}, "se_ratio must be a number, got '0.3'"),
        ('branches', 'block_args must be a mapping'),
    ],
)
def test_bad_block_args_are_named(block_args, message):
    with pytest.raises((TypeError, ValueError), match=re.escape(message)):
        timm.create_model('ddf_mul_resnet26', device='meta', block_args=block_args)


def test_pretrained_weights_that_do_not_exist_are_refused():
    with pytest.raises(RuntimeError, match='No pretrained weights'):
        timm.create_model('ddf_mul_resnet50', pretrained=True)


def test_reduced_first_width_is_refused():
    with pytest.raises(ValueError, match='block_reduce_first'):
        timm.create_model('ddf_mul_resnet26', device='meta', block_reduce_first=2)


def test_branches_start_as_published():
    """Kaiming fan_out for the branches' convolutions, N(0, (gain/k)^2) for the learned scale, zero last BatchNorm."""
    torch.manual_seed(0)
    block = timm.create_model('ddf_mul_resnet26').layer3[1]
    scale = block.conv2.channel_branch[4].std
    assert abs(scale.std().item() - 2**0.5 / 3) < 0.02
    convolution = block.conv2.channel_branch[1]
    assert abs(convolution.weight.std().item() - (2 / convolution.out_channels) ** 0.5) < 0.02
    assert block.bn3.weight.eq(0).all()
    assert isinstance(block, ddfnet.models.DDFBottleneck)
