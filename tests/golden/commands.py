"""The commands that old and new code must answer alike, each as a line of bash.

Every line runs in a new folder beside `fixtures`; `retrain` and `label_image` are the two scripts.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.golden import fixtures

NETWORKS = "--model_dir ../fixtures/models --precision float32"
TINY = f"{NETWORKS} --how_many_training_steps 100 --learning_rate 0.1"
PAIR = "--architecture inception_v3+mobilenet_0.25_128"
RATES = "--base_learning_rate 0.01 --head_learning_rate 0.01 --fine_tune_epochs 3"
PHOTO = "../fixtures/photos/red/photo_00.jpg"
SOME = f"{PHOTO} ../fixtures/photos/blue/photo_0[12].jpg ../fixtures/mixed/red/turned.jpeg"


@dataclass(frozen=True)
class Command:
    """One command and what is known of it beforehand.

    It begins with the files that the old code left after the command `after`, whichever code runs
    it: so new code reads old stores, graphs and checkpoints. Then `setup` changes the folder.
    `code` is the exit code, `says` is in stdout or stderr, `silent_on` is not.
    """

    name: str
    line: str
    after: str | None = None
    setup: Callable[[Path], None] | None = None
    code: int = 0
    says: str = ""
    silent_on: str | None = None


def train(name, flags="", photos="photos", **settings):
    """A run of retrain.py on one of the folders of the fixtures."""
    line = f"retrain --image_dir ../fixtures/{photos} {TINY} {flags}"
    return Command(name, line.strip(), **settings)


def label(name, flags, **settings):
    """A run of label_image.py, after `train` unless told otherwise."""
    return Command(name, f"label_image {flags}", **{"after": "train", **settings})


def wrong(name, flags, says, after=None):
    """A run of retrain.py that its flags alone forbid."""
    line = f"retrain --image_dir ../fixtures/photos {flags}"
    return Command(name, line, after=after, code=2, says=says)


TRAINING = [
    train("train", "--validation_percentage 35", says="fitted a score for unknown images"),
    train("train_again", "--validation_percentage 35", after="train", silent_on="bottlenecks:"),
    train("other_seed", "--seed 7 --eval_step_interval 50", after="train"),
    train("mobilenet", "--architecture mobilenet_0.25_128"),
    train(
        "model_file",
        "--architecture mobilenet_0.25_128 "
        "--model_file ../fixtures/models/mobilenet_v1_0.25_128/frozen_graph.pb",
        after="mobilenet",
        silent_on="bottlenecks:",
    ),
    train("pair", f"{PAIR} --validation_percentage 35"),
    train("pair_parts_cached", "", after="pair", silent_on="bottlenecks:"),
    train("mirror", "--mirror_average"),
    train("pair_mirror", f"{PAIR} --mirror_average --hidden_units 8"),
    Command(
        "own_precision",
        "retrain --image_dir ../fixtures/photos --model_dir ../fixtures/models "
        "--how_many_training_steps 50 --batch_size 5",
    ),
    Command(
        "drawings",
        "retrain --image_dir flower_photos --offline --how_many_training_steps 200",
        says="drew pictures of flowers instead",
    ),
    train("mixed", "--print_misclassified_test_images", "mixed", says="duplicate"),
    train("mixed_recursive", "--recursive --logging_verbosity DEBUG", "mixed", after="mixed"),
    train("exclude", "--exclude ../fixtures/excluded.txt", "mixed", after="mixed"),
    Command(
        "exclude_audit",
        """awk -F '\\t' 'NR == 1 || $5 == "label"' models/label_audit.tsv > audit.tsv; """
        f"retrain --image_dir ../fixtures/mixed {TINY} --exclude audit.tsv",
        after="mixed",
    ),
    train("stratified", "--stratified --testing_percentage 20", "mixed", after="mixed"),
    train("split_by_path", "--split_by path", "mixed", after="mixed"),
    train("small_images_only", "--max_image_pixels 1000 --max_bad_fraction 1", "mixed", code=1),
    train("few", "--quiet", "few", says="red has only 6 images"),
    train("grown", "", "grown", after="train", says="classes added"),
    train("no_test_photos", "--testing_percentage 0", after="train", says="unknown"),
    train("quiet", "--quiet --assert_accuracy_at_least 0.5", after="train"),
    train("learns_nothing", "--learning_rate 0 --print_misclassified_test_images", after="train"),
    train(
        "own_names",
        "--final_tensor_name own/result --output_labels l.txt --report r.html --metrics m.json "
        "--label_audit '' --summaries_dir logs --projector_photos 5 --output_graph deep/er/g.pb",
        after="train",
    ),
    train("no_report", "--no_report --projector_photos 0", after="train"),
    train(
        "intermediate",
        "--intermediate_store_frequency 40 --intermediate_output_graphs_dir between",
        after="train",
    ),
    train("distortions", "--flip_left_right --random_crop 10 --distorted_views 2"),
    train(
        "distortions_again",
        "--flip_left_right --random_crop 10 --distorted_views 2",
        after="distortions",
        silent_on="bottlenecks:",
    ),
    train("distortions_all", "--random_scale 10 --random_brightness 10 --distorted_views 1"),
    train(
        "damaged_store",
        after="train",
        setup=fixtures.damaged_store,
        says="was damaged or not a bottleneck store; moved it to",
    ),
    train("damaged_row", after="train", setup=fixtures.damaged_row, says="computed again"),
    train("foreign_tables", photos="mixed", setup=fixtures.foreign_tables),
    train("sources_refused", "--architecture inception_v3+inception_v3", code=2),
]

HEADS = [
    train(
        "hidden",
        "--hidden_units 16,8 --dropout 0.3 --optimizer adam --learning_rate 0.01",
        after="train",
    ),
    Command(
        "epochs",
        f"retrain --image_dir ../fixtures/mixed {NETWORKS} --epochs 4 --optimizer rmsprop "
        "--class_weights none",
        after="mixed",
    ),
    Command(
        "head_auto",
        f"retrain --image_dir ../fixtures/mixed {NETWORKS} --head auto --label_smoothing 0.1",
        after="mixed",
        says="has the lowest validation cross entropy",
    ),
    Command(
        "lbfgs",
        f"retrain --image_dir ../fixtures/mixed {NETWORKS} --optimizer lbfgs --l2 0.01",
        after="mixed",
    ),
    train(
        "early_stopping",
        "--optimizer momentum --early_stopping 2 --l2 0.001 --label_smoothing 0.1",
        "mixed",
        after="mixed",
        says="is kept",
    ),
    train("whole_batches", "--train_batch_size -1 --validation_batch_size -1", after="train"),
    train("astray", "--learning_rate 1e30", after="train", code=1, says="learning_rate"),
]

FINE = f"--fine_tune all {RATES}"
INTERRUPTED = (
    '"$PYTHON" "$GOLDEN/stop_at.py" 2 {} "$CODE/retrain.py" --image_dir ../fixtures/photos '
    + f"{TINY} {FINE}"
)
FINE_TUNING = [
    train("fine_tune", FINE, after="train", says="fine-tuning two_rates: 3 epochs"),
    train(
        "fine_tune_frozen",
        f"{FINE} --freeze_until conv --fine_tune_views plain --fine_tune_batch_size 20",
        after="train",
    ),
    train("fine_tune_hidden", f"{FINE} --hidden_units 8", after="train"),
    train("fine_tune_distorted", f"{FINE} --random_scale 10 --distorted_views 1", after="train"),
    train("fine_tune_mobilenet", f"{FINE} --architecture mobilenet_0.25_128", after="mobilenet"),
    train("compare", f"--compare head,two_rates,all,scratch {RATES}", after="train"),
    Command("killed", INTERRUPTED.format("kill"), after="train", code=137),
    train("resumed", FINE, after="killed", says="resumes after epoch 2"),
    Command("terminated", INTERRUPTED.format("term"), after="train", code=130),
    train("resumed_after_signal", FINE, after="terminated", says="resumes after epoch 2"),
    train("resumed_otherwise", f"{FINE} --seed 3", after="killed", silent_on="resumes after"),
    train(
        "damaged_checkpoint",
        FINE,
        after="killed",
        setup=fixtures.damaged_checkpoint,
        says="is damaged or cannot be read",
    ),
]

OTHER_FILES = [
    train("export_vectors", "--export_vectors v.parquet", after="train"),
    train(
        "import_vectors", "--import_vectors v.parquet --bottleneck_dir new", after="export_vectors"
    ),
    train(
        "classic",
        "--import_classic_bottlenecks classic",
        after="train",
        setup=fixtures.classic_vectors,
        says="taken over",
    ),
    train(
        "formats",
        "--saved_model_dir saved --tflite_file m.tflite --onnx_file m.onnx",
        after="train",
    ),
    train("tflite_dynamic", "--tflite_file m.tflite --tflite_quantize dynamic", after="train"),
    train("tflite_int8", "--tflite_file m.tflite --tflite_quantize int8", after="train"),
    train("formats_pair", f"{PAIR} --saved_model_dir saved --tflite_file m.tflite", after="pair"),
    train("formats_hidden", "--hidden_units 8 --tflite_file m.tflite", after="train"),
    Command(
        "keras",
        "retrain --image_dir ../fixtures/few --architecture keras:MobileNet_0.25_32 "
        "--weights random --offline --how_many_training_steps 50",
    ),
    Command(
        "keras_file",
        "retrain --image_dir ../fixtures/few --architecture saved_model "
        "--model_file ../fixtures/model.keras --how_many_training_steps 50",
    ),
    Command(
        "saved_model",
        "retrain --image_dir ../fixtures/few --architecture saved_model "
        "--model_file ../fixtures/saved_model --input_mean 0 --input_std 255 "
        "--how_many_training_steps 50",
    ),
    train("ray", "--engine ray --ray_address local --ray_actors 1", says="1 worker with 1 CPU"),
    Command("bucket", f"retrain --image_dir s3://photos/few {TINY}"),
    Command(
        "bucket_again",
        f"retrain --image_dir s3://photos/few {TINY} --no_report",
        after="bucket",
        silent_on="bottlenecks:",
    ),
    label("bucket_label", "s3://photos/few/red/photo_00.jpg s3://photos/few/none.jpg", code=1),
    Command("bucket_empty", f"retrain --image_dir s3://photos/none {TINY}", code=1),
]

LABELLING = [
    label("label_one", PHOTO, says="red (score="),
    label("label_top", f"--image {PHOTO} --num_top_predictions 1"),
    label("label_several", SOME),
    label("label_folder", "../fixtures/photos --top_k 1"),
    label("label_mixed", "../fixtures/mixed/grey ../fixtures/mixed/red --top_k 1", code=1),
    label("label_jsonl", f"{SOME} ../fixtures/text.jpg --format jsonl", code=1),
    label("label_csv", f"{SOME} --format csv --columns path,label,score,rank,error"),
    label("label_tsv_header", f"{SOME} --format tsv --header --min_score 0.2"),
    label("label_text", f"{SOME} --format text --top_k 2"),
    label("label_raw", f"{SOME} --raw_scores --precision float32"),
    label("label_unknown", "../fixtures/grown/grey --unknown_threshold auto --top_k 1"),
    label("label_unknown_share", f"{SOME} --unknown_threshold 0.5"),
    label("label_renamed", f"{PHOTO} --labels ../fixtures/three.txt"),
    label(
        "label_foreign",
        f"{PHOTO} --graph ../fixtures/models/inception_dec_2015/tensorflow_inception_graph.pb "
        "--input_layer Mul --output_layer softmax --input_height 32 --input_width 32 "
        "--input_mean 128 --input_std 128 --labels ten.txt",
        setup=fixtures.ten_labels,
    ),
    label("label_pair", SOME, after="pair"),
    label("label_pair_unknown", "../fixtures/photos/green --unknown_threshold auto", after="pair"),
    label("label_mirror", SOME, after="mirror"),
    label("label_pair_mirror", SOME, after="pair_mirror"),
    label("label_hidden", SOME, after="hidden"),
    label("label_fine_tuned", SOME, after="fine_tune"),
    label("label_own_names", f"{PHOTO} --graph deep/er/g.pb", after="own_names"),
    label("label_efficientnet", "flower_photos/daisy --top_k 1", after="drawings"),
    label("evaluate", "--evaluate ../fixtures/photos"),
    label("evaluate_mixed", "--evaluate ../fixtures/mixed --format tsv", after="mixed", code=1),
    label("evaluate_others", "--evaluate ../fixtures/grown"),
    label("sort_copy", "../fixtures/photos --sort_into sorted --top_k 1"),
    label("sort_again", "../fixtures/photos --sort_into sorted --top_k 1", after="sort_copy"),
    label("sort_link", "../fixtures/few --sort_into sorted --sort_by link --min_score 0.5"),
    Command("pipe_list", "ls ../fixtures/photos/*/*7.jpg | label_image - --top_k 1", after="train"),
    Command(
        "pipe_nul",
        "find ../fixtures/mixed/red -maxdepth 1 -type f -print0 | sort -z | "
        "label_image -0 --format jsonl --top_k 1",
        after="train",
    ),
    Command(
        "pipe_head",
        "label_image ../fixtures/photos ../fixtures/photos ../fixtures/photos | head -1",
        after="train",
    ),
    Command(
        "pipe_results",
        f"retrain --image_dir ../fixtures/photos {TINY} --quiet | cut -f 1",
        after="train",
    ),
    Command("nobody_listens", f"retrain --image_dir ../fixtures/photos {TINY} 2>&-", after="train"),
    Command("help_retrain", "retrain --help"),
    Command("help_label", "label_image --help"),
]

FLAG_ERRORS = [
    wrong("unknown_flag", "--learning_rte 0.1", "did you mean --learning_rate"),
    wrong("bad_number", "--learning_rate nan", "finite number"),
    wrong("bad_choice", "--optimizer adamw", "invalid choice"),
    wrong("bad_network", "--architecture mobilenet_0.3_224", "no network"),
    wrong("no_training", "--testing_percentage 60 --validation_percentage 40", "leave no training"),
    wrong("auto_and_rate", "--head auto --learning_rate 0.1", "cannot be combined with it"),
    wrong("epochs_and_steps", "--epochs 3 --how_many_training_steps 5", "give one of them"),
    wrong("dropout_alone", "--dropout 0.5", "add --hidden_units"),
    wrong("quantize_alone", "--tflite_quantize dynamic", "needs --tflite_file"),
    wrong("stratified_by_path", "--stratified --split_by path", "drop --split_by path"),
    wrong("compare_and_fine_tune", "--compare head,all --fine_tune all", "drop --fine_tune all"),
    wrong("compare_unknown", "--compare head,half", "is none of"),
    wrong("tune_pair", f"--fine_tune all {PAIR}", "fine-tuning is for one network"),
    wrong("ray_alone", "--ray_actors 2", "needs --engine ray"),
    wrong("ray_address", "--engine ray --ray_address nonsense", "must be auto, local"),
    wrong("same_file", "--output_labels x --metrics x", "name the same file"),
    wrong("url_output", "--output_graph s3://b/g.pb", "is a URL"),
    wrong("bad_tensor_name", "--final_tensor_name 'a b'", "cannot name a tensor"),
    wrong("no_classic_folder", "--import_classic_bottlenecks nowhere", "is not a folder"),
    wrong("no_vectors", "--import_vectors nowhere.parquet", "is not a file"),
    wrong("no_exclude", "--exclude nowhere.txt", "nowhere.txt"),
    Command("no_image_dir", "retrain", code=2),
    label("no_image", "--top_k 3", code=2, says="give an image"),
    label("zero_std", f"{PHOTO} --input_std 0", code=2, says="divide by zero"),
    label("bad_column", f"{PHOTO} --columns path,mood", code=2, says="there is no column"),
    label("evaluate_and_images", f"{PHOTO} --evaluate ../fixtures/photos", code=2),
]

RUN_ERRORS = [
    train("missing_folder", photos="nowhere", code=1),
    train("empty_folder", photos="nothing", code=1),
    train("one_class", photos="one_class", code=1, says="only one"),
    train("alike_classes", photos="alike", says="are easily mixed up"),
    train("too_many_bad", "--max_bad_fraction 0", "mixed", code=1),
    train("damaged_graph", "--model_file ../fixtures/cut.pb", code=1),
    train("text_as_graph", "--model_file ../fixtures/three.txt", code=1),
    train(
        "wrong_network",
        "--model_file ../fixtures/models/mobilenet_v1_0.25_128/frozen_graph.pb",
        code=1,
        says="is not inception_v3",
    ),
    train("retrained_as_base", "--model_file models/retrained_graph.pb", after="train", code=1),
    train(
        "unsafe_graph",
        "--architecture mobilenet_0.25_128 --model_file ../fixtures/unsafe.pb",
        code=1,
        says="--allow_unsafe_ops",
    ),
    train(
        "unsafe_allowed",
        "--architecture mobilenet_0.25_128 --model_file ../fixtures/unsafe.pb --allow_unsafe_ops",
    ),
    Command(
        "offline",
        "retrain --image_dir ../fixtures/few --architecture mobilenet_1.0_224 --offline",
        code=1,
        says="--offline forbids",
    ),
    train("no_layer", f"{FINE} --freeze_until mixed/towr", code=1, says="did you mean mixed/tower"),
    train(
        "missed_accuracy",
        "--learning_rate 0 --assert_accuracy_at_least 0.99",
        after="train",
        code=1,
    ),
    train("full_folder", after="train", setup=fixtures.full_folder, code=1),
    train("forbidden_folder", "--output_graph /proc/nowhere/g.pb", code=1),
    train("forbidden_cache", "--bottleneck_dir /proc/nowhere", code=1),
    Command(
        "full_disk",
        f"retrain --image_dir ../fixtures/photos {TINY} >/dev/full",
        after="train",
        code=1,
        says="No space left",
    ),
    Command("unreachable", f"retrain --image_dir http://127.0.0.1:9/photos {TINY}", code=1),
    train(
        "classic_of_another",
        "--import_classic_bottlenecks classic",
        after="train",
        setup=fixtures.wrong_classic_vectors,
        code=1,
    ),
    label("no_graph", f"{PHOTO} --graph nowhere.pb", code=1),
    label("cut_graph", f"{PHOTO} --graph ../fixtures/cut.pb", code=1),
    label("unsafe_label", f"{PHOTO} --graph ../fixtures/unsafe.pb", code=1),
    label("two_labels", f"{PHOTO} --labels ../fixtures/two.txt", code=1),
    label("text_as_image", "../fixtures/text.jpg", code=1, says="is not an image"),
    label("missing_image", f"nowhere.jpg {PHOTO}", code=1),
    label("no_images", "../fixtures/nothing", code=1),
    label("no_unknown_score", f"{PHOTO} --unknown_threshold auto", after="mixed", code=1),
    label("sort_into_source", "copy --sort_into copy", setup=fixtures.own_photos, code=1),
    label("sort_into_file", f"{PHOTO} --sort_into models/retrained_graph.pb", code=1),
    Command("label_full_disk", f"label_image {PHOTO} >/dev/full", after="train", code=1),
]

COMMANDS = [
    *TRAINING,
    *HEADS,
    *FINE_TUNING,
    *OTHER_FILES,
    *LABELLING,
    *FLAG_ERRORS,
    *RUN_ERRORS,
]
