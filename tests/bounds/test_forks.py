"""A child forked while another thread proves: neither waits for ever, and both find what they should."""

import subprocess
import sys
import textwrap

import numpy as np
import pytest

CODE = """
    import os, sys, threading, time, warnings
    warnings.simplefilter("ignore")  # Python's, of a fork with threads
    import numpy as np
    import opnorm

    rng = np.random.default_rng(0)
    kernel, matrix = rng.standard_normal((3, 3, 8, 8)), rng.standard_normal((300, 200))
    wide = rng.standard_normal((2100, 2050))  # BLAS takes all its threads
    truth = np.linalg.svd(matrix, compute_uv=False)[0]

    def work(values):
        while True:
            opnorm.spectral_norm(values)

    for values in (opnorm.Convolution(kernel), matrix, wide):
        threading.Thread(target=work, args=(values,), daemon=True).start()
    for turn in range(12):
        time.sleep(0.01 * turn)
        child = os.fork()
        if child == 0:
            lower, upper = opnorm.spectral_norm(matrix)
            opnorm.spectral_norm(opnorm.Convolution(kernel))
            os._exit(0 if lower <= truth <= upper else 1)
        assert os.waitpid(child, 0)[1] == 0
    print("done")
    sys.stdout.flush()
    os._exit(0)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="nothing forks there")
@pytest.mark.skipif(np.__version__ < "2", reason="the BLAS of NumPy 1.26 waits for ever in such children, by itself")
def test_children_forked_while_threads_prove_finish():
    code = textwrap.dedent(CODE)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False)
    assert done.stdout.strip() == "done", done.stderr[-2000:]


def test_a_proof_imports_nothing():
    """A child that is forked in the middle of another thread's import may wait for that import for ever."""
    code = """
        import sys
        import numpy as np
        import opnorm

        rng = np.random.default_rng(0)
        values = rng.standard_normal((300, 200)), opnorm.Convolution(rng.standard_normal((3, 3, 8, 8)))
        prove, before = opnorm.spectral_norm, set(sys.modules)
        for each in (*values, rng.standard_normal((2100, 2050))):
            prove(each)
        print(sorted(set(sys.modules) - before))
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
