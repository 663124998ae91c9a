from fcn_jax.data.voc_classes import CLASS_NAMES


def test_classes_have_the_indices_of_pascal_voc():
    assert len(CLASS_NAMES) == len(set(CLASS_NAMES)) == 21
    indices = {
        name: CLASS_NAMES.index(name) for name in ("background", "cat", "person")
    }
    assert indices == {"background": 0, "cat": 8, "person": 15}
    assert CLASS_NAMES[20] == "tvmonitor"
