"""The fields of an experiment, with their values in `configs/small.py`."""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """All fields with their defaults; other experiments change some of them."""
    config = ConfigDict()
    config.seed = 0

    config.data = ConfigDict()
    config.data.dir = ""  # empty: the demo set, drawn on first use; "A,B,C": several sets
    config.data.weights = ()  # one number per set; (): square roots of the sets' sizes
    config.data.balance = True  # for several sets: draw both classes equally often
    config.data.image_size = 224  # px, side of a training crop; 128: faster
    config.data.crop = "resize"  # "resize": scale the picture, then crop; "native": only crop
    config.data.crop_pct = 0.875  # "resize": side of the crop, of the picture's; 1: all of it
    config.data.zoom = (1.0, 1.0)  # random factor on the side of each training crop; 0.7: closer
    config.data.max_px = 256  # "native": scale the shorter side down to this if it is longer
    config.data.eval_image_size = 0  # px of the scored middle, at training's scale; 0: image_size
    config.data.cache = "auto"  # decoded pictures: "none", "host" on disk, "device" in its memory
    config.data.cache_gib = 0.0  # for all sets in MNV4_CACHE; 0: half of its free space
    config.data.jpeg_prob = 0.0  # share of training crops that are compressed again
    config.data.jpeg_quality = (30, 95)
    config.data.downscale_prob = 0.0  # share scaled down and up again
    config.data.downscale = (0.4, 0.9)
    config.data.webp_prob = 0.0  # share that WebP compresses, on the host, before all of these
    config.data.blended = 0.0  # share of the fakes made from reals, see blending.py; first
    # for the sets of a mixture that have no fakes of their own
    config.data.threads = 0  # decoding threads per process; 0: one per core, at most 16 in all
    config.data.workers = 0  # decoding processes; 0: threads only
    config.data.log_digests = False  # WORKDIR/digests.jsonl: a hash of every global batch

    config.model = ConfigDict()
    config.model.name = "mobilenetv4_conv_small"
    config.model.drop_rate = 0.2
    config.model.drop_path_rate = 0.0
    config.model.zero_init_head = True
    config.model.zero_init_residual = True
    config.model.batch_norm = "global"  # or "local": statistics per device, one all-reduce a step
    config.model.dtype = "auto"  # bfloat16 on TPU and GPU, float32 on CPU; or float32, float64, ...
    config.model.init_from = ""  # weights: a checkpoint, "shipped", FILE, hf:REPOSITORY

    config.gabor = ConfigDict()
    config.gabor.mode = "concat"  # "none", "enhance", "concat"
    config.gabor.response = "magnitude"  # of a quadrature pair, independent of phase; or "real"
    config.gabor.learnable = False  # True: train theta, sigma, lambd, gamma, psi of every filter
    config.gabor.kernel_size = 7  # px, odd
    config.gabor.orientations = 4  # over 180 degrees; the bank is orientations x wavelengths
    config.gabor.wavelengths = (2.5, 4.0)  # px; forgery traces are fine, and 2 is Nyquist
    config.gabor.sigma_ratio = 0.56  # sigma / wavelength; 0.56 is a bandwidth of one octave
    config.gabor.gamma = 1.0  # aspect of the envelope
    config.gabor.psi = 0.0  # rad; "real": 0 answers to lines, pi / 2 to edges
    config.gabor.gain = 50.0  # factor on the responses, which are about 1/100 of full scale

    config.augment = ConfigDict()  # on the device; 0 switches a strength off
    config.augment.flip = 0.5  # probability
    config.augment.brightness = 0.1  # largest shift, of 1
    config.augment.contrast = 0.1  # largest relative change
    config.augment.gamma = 0.0  # largest change of the exponent's base-2 logarithm
    config.augment.saturation = 0.1  # largest relative change
    config.augment.blur = 0.0  # px, largest sigma
    config.augment.noise = 0.0  # largest standard deviation, of 1
    config.augment.erase = 0.0  # probability of a rectangle in the picture's mean colour

    config.train = ConfigDict()
    config.train.batch_size = 64  # global
    config.train.epochs = 20.0
    config.train.steps = 0  # 0: by epochs
    config.train.log_every_steps = 10
    config.train.eval_every_steps = 0  # 0: once an epoch
    config.train.learning_rate = 2e-3
    config.train.warmup_epochs = 1.0
    config.train.weight_decay = 0.05
    config.train.layer_decay = 1.0  # on the learning rate, for each layer below the head
    config.train.label_smoothing = 0.05
    config.train.consistency = 0.0  # weight of the change by damage; doubles a step's cost
    config.train.trainable = ()  # parts of names, ("norm", "head"): train only these
    config.train.clip_norm = 1.0  # of the gradient; 0: off
    config.train.ema_decay = 0.998
    config.train.shard_state = False  # True: weights, moments and EMA split over the devices
    config.train.max_bad_steps = 10  # non-finite losses in a row before the run stops
    config.train.adversary = ConfigDict()  # training on attacked pictures, see docs/ROBUSTNESS.md
    config.train.adversary.method = "none"  # "fgsm", "pgd", "trades"
    config.train.adversary.budget = 1.0  # 255ths that a pixel may move
    config.train.adversary.steps = 3  # gradients an attack of "pgd" or "trades" takes
    config.train.adversary.step_size = 0.0  # a share of the budget; 0: 2.5 / steps
    config.train.adversary.weight = 1.0  # of attacked pictures' loss; "trades": of the divergence
    config.train.adversary.warmup_epochs = 1.0  # the budget grows linearly from 0
    config.train.adversary.share = 0.5  # of a batch that is attacked

    config.checkpoint = ConfigDict()
    config.checkpoint.every_steps = 100
    config.checkpoint.keep = 2  # newest ones; the best by validation AUC is also kept

    config.demo = ConfigDict()  # replaces the same fields above if data.dir is empty
    config.demo.image_size = 128
    config.demo.crop_pct = 1.0
    config.demo.epochs = 10.0
    return config
