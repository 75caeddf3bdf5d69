"""What a bundle may name and hold, and what it may not: every list of the inspection."""


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


def _inside(module: str, text: str) -> frozenset[str]:
    return frozenset(f"{module}.{word}" for word in text.split())


# Targets: classes of these modules, classes of monai and custom, and single functions.
TORCH_MODULES = _words("""
    torch.nn torch.nn.parallel torch.optim torch.optim.lr_scheduler torch.optim.swa_utils
    torch.utils.data torch.utils.data.distributed torch.utils.tensorboard
""")
IGNITE_MODULES = _words("ignite.engine ignite.handlers ignite.metrics")
TARGET_FUNCTIONS = _words("monai.utils.set_determinism torch.device torch.Generator")
CUSTOM_FUNCTIONS = _inside(  # that the configurations of the project name
    "custom",
    """
    changed_settings.changed_settings changed_settings.compared_settings channels.channel_layout
    class_balance.class_balance determinism.settle epochs.epoch_length epochs.optimizer_steps
    features.copies.plan_copies loaders.training_loader model_files.model_description
    model_scores.stored_segmentation precision.loss_scaler preflight.begin
    processes.data_parallel processes.join processes.leave scores.validation_score
    targets.settings.target_settings training.training_volumes volume_datasets.inference_dataset
    volume_datasets.validation_dataset
    """,
)
TARGET_BUILTINS = _words("bool dict float int len list range set str tuple")

OPEN_MONAI = _words("data engines handlers inferers losses metrics networks optimizers transforms")

# In there, what finds classes by words, fetches, or writes where it is told.
CLOSED_MONAI = _words("""
    data.csv_saver data.image_reader data.image_writer data.torchscript_utils data.utils
    data.wsi_reader handlers.clearml_handlers handlers.mlflow_handler handlers.trt_handler
    losses.perceptual networks.blocks.hyena networks.nets.flexible_unet networks.trt_compiler
    networks.utils transforms.io transforms.io.array transforms.io.dictionary
""")
CLOSED_CLASSES = _words("Lambda Lambdad PatchInferer RandLambda RandLambdad")
CLOSED_CUSTOM = ("custom.downloads", "custom.files", "custom.inspection", "custom.sharing")

# Expressions.
MODULES = _words("custom ignite math monai numpy os os.path sys torch")  # may be imported
PARENTS = _words("ignite monai torch")  # whose modules may be imported, too, if they are files
SAFE_BUILTINS = _words("""
    abs bool dict enumerate float int isinstance len list max min range reversed round set sorted
    str sum tuple zip
""")
CALLED = (
    _words("monai.utils.set_determinism os.cpu_count os.environ.get os.getenv")
    | _inside("torch", "Generator arange device tensor backends.mps.is_available")
    | _inside("torch.cuda", "current_device device_count is_available is_bf16_supported set_device")
    | _inside(
        "torch.distributed",
        "barrier destroy_process_group get_rank get_world_size init_process_group is_available "
        "is_gloo_available is_initialized is_nccl_available",
    )
    | _inside(
        "os.path",
        "abspath basename dirname exists isdir isfile join normpath relpath splitext",
    )
    | _inside("math", "ceil exp floor log log2 prod sqrt")
    | _inside("numpy", "arange array linspace")
)
VALUES = (
    _words("math.inf math.pi os.sep")
    | _inside("numpy", "float32 float64 int64 uint8 uint64")
    | _inside("torch", "bfloat16 bool float16 float32 float64 int64 uint8")
)

# Attributes that nothing in a configuration needs, whatever object they belong to.
CLOSED_NAMES = _words("""
    breakpoint call check_call check_output chmod chown compile connect exec execfile f_globals
    fork format format_map from_file getattr gi_frame import_module kill link load load_library
    load_module load_state_dict_from_url loads makedirs mkdir open popen putenv remove removedirs
    rename rmdir rmtree run_module run_path save setattr spawn spawnl spawnv spawnvp startfile
    symlink symlink_to system tofile touch unlink unsafe_load urlopen urlretrieve write write_bytes
    write_text
""")

# Pickles: what torch's own loading of weights alone needs; none does more than make tensors.
PICKLED = (
    frozenset({"collections OrderedDict", "torch.nn.parameter Parameter"})
    | {"torch.storage UntypedStorage"}
    | {
        f"torch._utils {name}"
        for name in _words("""
        _rebuild_parameter _rebuild_tensor _rebuild_tensor_v2
    """)
    }
    | {
        f"torch {name}"
        for name in _words("""
        float16 bfloat16 float32 float64 int8 int16 int32 int64 uint8 uint16 uint32 uint64 bool
        complex64 complex128 Size device Tensor
    """)
    }
    | {
        f"torch {name}Storage"
        for name in _words("""
        Half BFloat16 Float Double Char Short Int Long Byte Bool ComplexFloat ComplexDouble
    """)
    }
)

# Files.
SUFFIXES = _words("""
    .conf .csv .gif .jpeg .jpg .json .md .png .pt .pth .py .safetensors .sha256 .svg .txt .yml
""")
NAMES = _words("LICENSE")  # files without a suffix

# Python that one should look at before anything else, where a file is not the project's own.
TELLING_MODULES = _words("""
    _ctypes asyncio base64 builtins cffi code codeop ctypes dill fcntl ftplib http httpx importlib
    inspect marshal mmap multiprocessing os pickle pip pkgutil platform pty requests runpy shelve
    shutil signal site smtplib socket ssl subprocess sys tempfile threading urllib webbrowser
    zipimport
""")
TELLING_CALLS = _words("""
    __import__ breakpoint compile delattr eval exec execfile getattr globals locals open setattr
    vars
""")
