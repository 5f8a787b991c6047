"""What a run does up to its vectors, for processes that are killed: imports no more than that."""

import os

from retraining.bottlenecks import store as cache
from retraining.bottlenecks.extract import Extractor, Job, fill_store
from retraining.bottlenecks.store import BottleneckStore
from retraining.networks.network import load_network
from retraining.networks.registry import NETWORKS
from retraining.photos.dataset import Example
from retraining.photos.registry import hash_file


def extract_all(network_file, photo_folder, store_folder, reached=None, photos=0):
    """What a run does up to its vectors, committing often; sets `reached` after so many photos."""
    cache.COMMIT_SECONDS = 0.02
    network = load_network(network_file, NETWORKS["inception_v3"])
    names = sorted(os.listdir(photo_folder))
    paths = [os.path.join(photo_folder, name) for name in names]
    jobs = [Job(Example(path, "red", "training", hash_file(path))) for path in paths]

    def progress(answers, total):
        for number, answer in enumerate(answers):
            if number == photos and reached:
                reached.set()
            yield answer

    with store_of(network, store_folder) as store:
        fill_store(store, jobs, Extractor(network), progress)
        store.read([job.example.key for job in jobs])


def store_of(network, folder):
    return BottleneckStore(folder, "net", network.fingerprint("float32"), network.width)
