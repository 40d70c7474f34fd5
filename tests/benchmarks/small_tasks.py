"""Small works of the speed benchmark of tasks."""

from benchmarks import task_work

SIZES = {"model.n_layer": 1, "model.n_encoder_layer": 2, "model.n_head": 2, "model.n_embd": 16}
CHANGES = SIZES | {"train.batch_size": 4, "mesh.data": 1}


def shrink(patch):
    """Makes works smaller: one shape of padded batches, two steps or four searches per turn."""
    patch.setattr(task_work, "N_BATCHES", 2)
    patch.setattr(task_work, "N_SENTENCES", 200)
    patch.setattr(task_work, "VOCABULARY", 100)
    patch.setattr(task_work, "PADDED_ROWS", dict.fromkeys(task_work.PADDED_ROWS, 8))
    patch.setattr(task_work, "PADDED_LENGTHS", dict.fromkeys(task_work.PADDED_LENGTHS, ()))
    patch.setattr(task_work, "SEARCHED_ROWS", 4)
    patch.setattr(task_work, "SEARCHED_LENGTH", 6)
