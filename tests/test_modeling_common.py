"""The points of transformers' own common model tests that `test_modeling_deit_distill.py` does not hold already.

transformers holds each of its models, DeiT and ViT among them, to `ModelTesterMixin`, `ConfigTester` and
`PipelineTesterMixin`. Each of their tests, without its `test_`, and where it is held:

In this file: determinism, batching_equivalence, model_outputs_equivalence, attention_outputs (order),
retain_grad_hidden_states_attentions, model_main_input_name, model_base_model_prefix, model_get_set_embeddings,
feed_forward_chunking, model_forward_default_config_values, can_be_initialized_on_meta, can_init_all_missing_weights,
init_weights_can_init_buffers, all_tensors_are_parameter_or_buffer, cannot_load_with_meta_device_context_manager,
from_pretrained_no_checkpoint, torch_save_load, can_use_safetensors, load_contiguous_weights,
load_save_without_tied_weights, tied_weights_keys, model_weights_reload_no_missing_tied_weights, bc_torch_dtype,
disk_offload_safetensors, model_parallelism (where a model may be split), gradient_checkpointing_enable_disable (and
backward_compatibility), enable_input_require_grads (and with_gradient_checkpointing), can_set_attention_dynamically,
config_attn_implementation_setter, eager_matches_sdpa_inference (half precisions), problem_types, torch_export,
pipeline_image_classification and pipeline_image_feature_extraction (and fp16), and the checks of ConfigTester.

In `test_modeling_deit_distill.py`: save_load, attention_outputs, hidden_states_output, initialization, training,
training_gradient_checkpointing (use_reentrant false and true), eager_matches_sdpa_inference (float32, gradients,
output_attentions), sdpa_can_dispatch_non_composite_models, correct_missing_keys, base_model_prefix_loads_base_weights,
can_load_ignoring_mismatched_shapes, the compiled model. In `test_export_onnx.py`: onnx_export.

Not applicable, as for DeiT and ViT: whatever is about text, generation, caches, rotary positions, experts, composite
models, tied weights, token embeddings and their resizing, `inputs_embeds`, tensor-parallel plans, weights kept in
float32 or ignored on saving (there are none), deepspeed and the size of their own test models. Flash and flex
attention, other kernels, offloading from an accelerator and several devices need hardware. Of what DeiT and ViT are
held to, four do not apply to us: reverse_loading_mapping and can_load_from_already_mapped_keys (our checkpoints have
had one layout ever); capture_outputs_decorator and can_capture_specific_layers_hidden_states (they test a decorator
that collects outputs by hooks; our models hand theirs on themselves).

Feed-forward chunking applies to neither DeiT nor ViT: they inherit the option from the common configuration and
compute the whole layer at once. So do we, and it must change nothing.
"""

import inspect
import logging
import weakref

import pytest
import torch
from accelerate import infer_auto_device_map
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from transformers import ViTImageProcessor, pipeline

from modeling_deit_distill import DeiTDistillConfig, DeiTDistillForImageClassification, DeiTDistillModel

MODELS = [(DeiTDistillModel, True), (DeiTDistillModel, False)]
CLASSIFIERS = [(DeiTDistillForImageClassification, True), (DeiTDistillForImageClassification, False)]


@pytest.fixture(params=MODELS + CLASSIFIERS, ids=["model", "plain model", "classifier", "plain classifier"])
def build(request, tiny_config):
    """`build(**overrides)`: one of the models with or without the distillation token, in eval mode."""
    model_class, token = request.param

    def make(**overrides):
        torch.manual_seed(0)
        return model_class(tiny_config(use_distillation_token=token, **overrides)).eval()

    return make


@pytest.fixture
def checkpoint(build, tmp_path):
    """A saved model, and its class."""
    model = build()
    model.save_pretrained(tmp_path)
    return model, tmp_path


def images(batch=3) -> torch.Tensor:
    return torch.randn(batch, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def backward(model):
    first = model(images())[0]  # logits or tokens; weighted, as the sum of normalised tokens has no gradient
    (first * torch.randn(first.shape, generator=torch.Generator().manual_seed(2))).sum().backward()


def same_weights(ours: nn.Module, theirs: nn.Module) -> bool:
    ours, theirs = ours.state_dict(), theirs.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def flat(output) -> list[torch.Tensor]:
    """Every tensor of an output, in order."""
    return [output] if torch.is_tensor(output) else [tensor for part in output for tensor in flat(part)]


# --- outputs --------------------------------------------------------------------------------------------------------


def test_the_same_images_give_the_same_answers_alone_and_in_a_batch(build):
    model = build()
    arguments = {"output_hidden_states": True, "output_attentions": True, "return_dict": False}
    batch, again = flat(model(images(), **arguments)), flat(model(images(), **arguments))
    assert all(torch.equal(one, other) for one, other in zip(batch, again, strict=True))
    alone = flat(model(images()[:1], **arguments))
    for many, one in zip(batch, alone, strict=True):
        torch.testing.assert_close(many[:1], one, rtol=1e-4, atol=1e-5)


def test_a_tuple_holds_what_the_output_holds_with_attentions_last(build):
    asked = {"output_hidden_states": True, "output_attentions": True}
    for model, arguments in ((build(), asked), (build(**asked), {})):  # asked for by argument and by configuration
        output = model(images(), **arguments)
        model.config.return_dict = False
        parts = model(images(), **arguments)
        assert type(parts) is tuple and len(parts) == len(output)
        for ours, theirs in zip(flat(parts), flat(output.to_tuple()), strict=True):
            assert torch.equal(ours, theirs)
        assert [state.shape[-1] for state in parts[-2]] == [32] * 3
        assert [weights.shape[1] for weights in parts[-1]] == [4] * 2


def test_hidden_states_and_attentions_can_retain_their_gradients(build):
    output = build()(images(), output_hidden_states=True, output_attentions=True)
    kept = [*output.hidden_states, *output.attentions]
    for tensor in kept:
        tensor.retain_grad()
    (output[0] * torch.randn(output[0].shape)).sum().backward()
    assert all(tensor.grad.abs().sum() > 0 for tensor in kept)


def test_what_was_not_asked_for_is_not_kept(build):
    model = build(num_hidden_layers=4, attn_implementation="eager")  # eager attention makes weights at any rate
    made, alive = [], []
    for layer in model.base_model.layers:
        layer.register_forward_hook(lambda _, __, output: made.extend(weakref.ref(tensor) for tensor in output))
    norm = model.base_model.norm
    norm.register_forward_pre_hook(lambda *_: alive.append([ref() is not None for ref in made]))
    with torch.no_grad():
        model(images())
    assert alive == [[False] * 6 + [True] * 2]  # tokens and weights of the last block


def test_feed_forward_chunking_changes_nothing(build):
    assert torch.equal(build(chunk_size_feed_forward=1)(images())[0], build()(images())[0])


def test_a_configuration_of_its_own_fields_alone_is_enough(build):
    model = build()
    config = DeiTDistillConfig(**model.config.to_diff_dict())
    assert config.to_dict() == model.config.to_dict()
    assert type(model)(config)(images())[0].shape == model(images())[0].shape


# --- names and places -----------------------------------------------------------------------------------------------


def test_the_main_input_comes_first_and_the_base_model_is_where_its_prefix_says(build):
    model = build()
    assert list(inspect.signature(model.forward).parameters)[0] == model.main_input_name == "pixel_values"
    base = model if type(model) is DeiTDistillModel else getattr(model, model.base_model_prefix)
    assert model.base_model is base and type(base) is DeiTDistillModel


def test_input_embeddings_can_be_replaced(build):
    model = build()
    assert model.get_input_embeddings() is model.base_model.embeddings.patch_embeddings
    assert model.get_output_embeddings() is None
    other = nn.Conv2d(3, 32, 8, 8)
    before = model(images())[0]
    model.set_input_embeddings(other)
    assert model.get_input_embeddings() is model.base_model.embeddings.patch_embeddings is other
    assert not torch.allclose(model(images())[0], before)


def test_no_two_weights_are_one(build):
    pointers = [tensor.data_ptr() for tensor in build().state_dict().values()]
    assert len(set(pointers)) == len(pointers)


# --- initialisation -------------------------------------------------------------------------------------------------


def assert_drawn(model):
    """Every weight comes from `_init_weights`, if its normal draws are too narrow to be seen."""
    for name, parameter in model.named_parameters():
        expected = 1.0 if "norm" in name and name.endswith("weight") else 0.0
        assert (parameter - expected).abs().max() < 1e-6, name


def test_weights_missing_from_a_checkpoint_are_all_drawn(build):
    model = build(initializer_range=1e-8)
    assert_drawn(type(model).from_pretrained(None, config=model.config, state_dict={}))


def test_a_model_made_without_memory_comes_to_life(build):
    # A tensor that is neither parameter nor buffer would stay on the meta device, and the forward would fail.
    with torch.device("meta"):
        model = build(initializer_range=1e-8)
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
    model.to_empty(device="cpu")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(torch.nan)
    model.init_weights()
    assert_drawn(model)
    assert model(images())[0].isfinite().all()


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_file_without_any_of_the_weights_is_reported_whole(checkpoint):
    model, folder = checkpoint
    save_file({"tensor": torch.tensor([1, 2])}, folder / "model.safetensors", metadata={"format": "pt"})
    loaded, info = type(model).from_pretrained(folder, output_loading_info=True)
    assert set(info["missing_keys"]) == set(model.state_dict())
    assert set(info["unexpected_keys"]) == {"tensor"}
    assert all(parameter.isfinite().all() for parameter in loaded.parameters())


# --- files, types, devices ------------------------------------------------------------------------------------------


def test_weights_survive_each_form_of_file(build, tmp_path):
    model = build()
    for form in ("safetensors", "shards", "pickle"):
        folder = tmp_path / form
        model.save_pretrained(folder, max_shard_size="10KB" if form == "shards" else "1GB")
        files = sorted(folder.glob("*.safetensors"))
        assert (len(files) > 1) == (form == "shards")
        if form == "pickle":  # no longer written, still read
            files[0].unlink()
            torch.save(model.state_dict(), folder / "pytorch_model.bin")
        loaded, info = type(model).from_pretrained(
            folder, use_safetensors=form != "pickle", image_size=32, output_loading_info=True
        )
        assert not any(info.values()), form
        assert same_weights(loaded, model), form
        assert all(parameter.is_contiguous() for parameter in loaded.parameters()), form


@pytest.mark.filterwarnings("ignore:`torch_dtype`:FutureWarning")
def test_the_dtype_has_two_names(checkpoint):
    model, folder = checkpoint
    half, single = torch.float16, torch.float32
    for value, expected in [("float16", half), (torch.bfloat16, torch.bfloat16), ("auto", single), ("float32", single)]:
        for name in ("dtype", "torch_dtype"):  # the latter is its former name, still taken
            loaded = type(model).from_pretrained(folder, **{name: value})
            assert {parameter.dtype for parameter in loaded.parameters()} == {expected}, (name, value)
            assert loaded.config.dtype == expected, (name, value)


def test_part_of_a_model_may_stay_on_disk(checkpoint, tmp_path):
    model, folder = checkpoint
    prefix = "" if type(model) is DeiTDistillModel else "deit."
    device_map = {name: "cpu" for name, _ in model.named_children() if name != "deit"}  # heads, or the parts below
    device_map |= {f"{prefix}{name}": "cpu" for name in ("embeddings", "layers.1", "norm")}
    device_map |= {f"{prefix}layers.0": "disk"}
    device_map.pop("layers", None)
    loaded = type(model).from_pretrained(folder, device_map=device_map, offload_folder=tmp_path / "offload")
    devices = [{parameter.device.type for parameter in layer.parameters()} for layer in loaded.base_model.layers]
    assert devices == [{"meta"}, {"cpu"}]
    torch.testing.assert_close(loaded(images())[0], model(images())[0])


def test_a_model_is_split_between_its_blocks_only(build):
    model = build()
    size = 4 * sum(parameter.numel() for parameter in model.parameters())  # bytes
    layers = {name for name, module in model.named_modules() if type(module).__name__ in model._no_split_modules}
    assert len(layers) == 3  # the embeddings and two blocks
    for share in (0.3, 0.5, 0.7, 0.9):
        devices = {0: int(share * size), "cpu": 2 * size}
        device_map = infer_auto_device_map(model, devices, no_split_module_classes=model._no_split_modules)
        assert not [name for name in device_map if name.rpartition(".")[0] in layers]


def test_loading_onto_the_meta_device_is_refused(checkpoint):
    model, folder = checkpoint
    with torch.device("meta"), pytest.raises(RuntimeError, match="meta"):
        type(model).from_pretrained(folder)


# --- training aids --------------------------------------------------------------------------------------------------

OLD_NAME = "ignore:`gradient_checkpointing_enable`:FutureWarning"  # the new one is too new for us


@pytest.mark.filterwarnings(OLD_NAME, "ignore:`gradient_checkpointing_disable`:FutureWarning")
def test_gradient_checkpointing_goes_on_and_off(build):
    def flags(model):
        return [layer.gradient_checkpointing for layer in model.base_model.layers]

    model = build()
    assert flags(model) == [False, False]
    model.gradient_checkpointing_enable()
    assert flags(model) == [True, True]
    model.gradient_checkpointing_disable()
    assert flags(model) == [False, False]
    assert flags(build(gradient_checkpointing=True)) == [True, True]


@pytest.mark.filterwarnings(OLD_NAME)
@pytest.mark.parametrize("reentrant", [False, True])
def test_blocks_learn_behind_frozen_embeddings(build, reentrant):
    # Re-entrant checkpointing passes no gradient to a block unless its input asks for one.
    model = build(drop_path_rate=0.0).train()
    model.base_model.embeddings.requires_grad_(False)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    model.enable_input_require_grads()
    backward(model)
    gradients = [parameter.grad for parameter in model.base_model.layers.parameters()]
    assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients)
    model.disable_input_require_grads()
    model.eval().requires_grad_(False)
    assert not model(images())[0].requires_grad


# --- attention ------------------------------------------------------------------------------------------------------


def test_attention_is_set_on_the_whole_model_and_unknown_kinds_are_refused(build):
    model = build(attn_implementation="eager")

    def kinds():
        return {module.config._attn_implementation for module in model.modules() if hasattr(module, "config")}

    assert kinds() == {"eager"}
    model.set_attn_implementation("sdpa")
    assert kinds() == {"sdpa"}
    with pytest.raises(ValueError, match="foo"):
        model.set_attn_implementation("foo")
    assert kinds() == {"sdpa"}


@pytest.mark.parametrize(("dtype", "bits"), [(torch.float16, 10), (torch.bfloat16, 7)], ids=str)
def test_sdpa_equals_eager_in_half_precision(build, dtype, bits):
    models = [build(attn_implementation=kind).to(dtype) for kind in ("sdpa", "eager")]
    for weights in (False, True):
        answers = [model(images().to(dtype), output_attentions=weights)[0].float() for model in models]
        # Some ten roundings on values around 1.
        torch.testing.assert_close(*answers, rtol=0, atol=10 * 2.0**-bits)


# --- labels of every kind -------------------------------------------------------------------------------------------


def by_hand(problem_type, logits, labels):
    if problem_type == "multi_label_classification":
        return -(labels * logits.sigmoid().log() + (1 - labels) * (-logits).sigmoid().log()).mean()
    if problem_type == "regression":
        return (logits - labels.view_as(logits)).square().mean()
    return -(labels * logits.log_softmax(-1)).sum(-1).mean()


@pytest.mark.parametrize("token", [True, False])
def test_the_problem_type_decides_what_labels_mean(tiny_model, token):
    for problem_type, num_labels, labels in [
        ("multi_label_classification", 2, torch.tensor([[1.0, 1.0], [0.0, 1.0], [0.0, 0.0]])),
        ("single_label_classification", 2, torch.tensor([[1.0, 0.0], [0.25, 0.75], [0.5, 0.5]])),
        (None, 2, torch.tensor([[1.0, 0.0], [0.25, 0.75], [0.5, 0.5]])),
        ("regression", 1, torch.tensor([3.0, -1.0, 0.5])),
        ("regression", 2, torch.tensor([[3.0, 1.0], [-1.0, 0.0], [0.5, 2.0]])),
    ]:
        model = tiny_model(problem_type=problem_type, num_labels=num_labels, use_distillation_token=token)
        output = model(images(), labels=labels)
        torch.testing.assert_close(output.loss, by_hand(problem_type, output.logits, labels))
        assert model.config.problem_type == problem_type
        output.loss.backward()
        assert all(parameter.grad.abs().sum() > 0 for parameter in model.cls_classifier.parameters()), problem_type


def test_one_class_is_a_regression(tiny_model):
    labels = torch.tensor([3.0, -1.0, 0.5])
    output = tiny_model(num_labels=1)(images(), labels=labels)
    torch.testing.assert_close(output.loss, (output.logits[:, 0] - labels).square().mean())


def test_a_choice_of_one_class_costs_nothing(tiny_model):
    model = tiny_model(num_labels=1)
    model.config.problem_type = "single_label_classification"
    assert model(images(), labels=torch.zeros(3, dtype=torch.long)).loss == 0


@pytest.mark.parametrize("problem_type", ["multi_label_classification", "regression"])
def test_a_fusion_by_softmax_is_refused_where_there_is_no_softmax(tiny_model, problem_type):
    arguments = {"problem_type": problem_type, "fusion": "softmax_mean"}
    with pytest.raises(ValueError, match=f"softmax_mean.*{problem_type}.*logit_mean"):
        tiny_model(**arguments)(images(), labels=torch.ones(3, 5))
    assert tiny_model(**arguments, use_distillation_token=False)(images(), labels=torch.ones(3, 5)).loss > 0


# --- deployment -----------------------------------------------------------------------------------------------------


def test_the_exported_program_takes_any_batch(tiny_model):
    model = tiny_model()
    shapes = {"pixel_values": {0: torch.export.Dim("batch")}}
    program = torch.export.export(model, (), {"pixel_values": images()}, dynamic_shapes=shapes).module()
    torch.testing.assert_close(program(pixel_values=images(7)).logits, model(images(7)).logits)


@pytest.fixture(scope="module")
def processor():
    return ViTImageProcessor(size={"height": 32, "width": 32})


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_pipelines_run_in_either_precision(tiny_model, processor, dtype):
    model, photo = tiny_model().to(dtype), Image.new("RGB", (40, 50), (200, 30, 90))
    pixels = processor(photo, return_tensors="pt")["pixel_values"].to(dtype)
    answers = pipeline("image-classification", model=model, image_processor=processor, top_k=None)(photo)
    scores = {answer["label"]: answer["score"] for answer in answers}
    expected = model(pixels).logits[0].float().softmax(-1).tolist()
    assert [scores[f"LABEL_{i}"] for i in range(5)] == pytest.approx(expected, abs=2e-3)
    features = pipeline("image-feature-extraction", model=model.deit, image_processor=processor)(photo)
    torch.testing.assert_close(
        torch.tensor(features), model.deit(pixels).last_hidden_state.float(), rtol=1e-2, atol=1e-3
    )


def test_a_pipeline_scores_several_labels_each_by_itself(tiny_model, processor):
    model, photo = tiny_model(problem_type="multi_label_classification"), Image.new("RGB", (32, 32), (200, 30, 90))
    answers = pipeline("image-classification", model=model, image_processor=processor, top_k=None)(photo)
    logits = model(processor(photo, return_tensors="pt")["pixel_values"]).logits[0]
    assert [answer["score"] for answer in answers] == pytest.approx(sorted(logits.sigmoid().tolist())[::-1])


# --- configuration --------------------------------------------------------------------------------------------------

# Neither default nor what DeiT's own configuration has: whatever all models share must be taken and kept.
COMMON_FIELDS = {
    "return_dict": False,
    "output_hidden_states": True,
    "output_attentions": True,
    "dtype": torch.float16,
    "chunk_size_feed_forward": 5,
    "architectures": ["SomeModel"],
    "id2label": {0: "label"},
    "label2id": {"label": 0},
    "problem_type": "regression",
}


def test_the_common_fields_are_taken(tiny_config):
    config = tiny_config(num_labels=1, **COMMON_FIELDS)
    assert {name: getattr(config, name) for name in COMMON_FIELDS} == COMMON_FIELDS


def test_a_configuration_survives_a_file_and_a_subfolder(tiny_config, tmp_path):
    config = tiny_config(problem_type="regression")
    config.to_json_file(tmp_path / "one.json")
    assert DeiTDistillConfig.from_json_file(tmp_path / "one.json").to_dict() == config.to_dict()
    config.save_pretrained(tmp_path / "inner")
    assert DeiTDistillConfig.from_pretrained(tmp_path, subfolder="inner").to_dict() == config.to_dict()
    with pytest.raises(OSError):
        DeiTDistillConfig.from_pretrained(tmp_path / "absent")


def test_the_number_of_labels_names_the_labels(tiny_config):
    config = tiny_config(num_labels=5)
    assert len(config.id2label) == len(config.label2id) == 5
    config.num_labels = 3
    assert len(config.id2label) == len(config.label2id) == 3


def test_a_configuration_is_made_in_silence(caplog):
    logger = logging.getLogger("transformers")  # it does not propagate
    logger.addHandler(caplog.handler)
    try:
        DeiTDistillConfig()
        DeiTDistillConfig(hidden_size=36, num_labels=3)
    finally:
        logger.removeHandler(caplog.handler)
    assert caplog.messages == []
