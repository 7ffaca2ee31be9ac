from __future__ import annotations

import os
import sys

import pytest
from hypothesis import settings

# Time limits per example fail at random on a busy machine; pytest's own limit guards against hanging.
settings.register_profile("project", deadline=None, max_examples=60)
settings.load_profile("project")


def pytest_collection_modifyitems(items):
    """Tests that need a GPU are left out where there is none, however they were asked for."""
    if any(item.get_closest_marker("gpu") for item in items):
        import torch

        if not torch.cuda.is_available():
            for item in items:
                if item.get_closest_marker("gpu"):
                    item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session, exitstatus):
    session.config.exit_status = int(exitstatus)


@pytest.hookimpl(trylast=True)
def pytest_unconfigure(config):
    """A process that had a dozen Rays ends here, where all is said: Ray's own threads may crash what the interpreter
    still does. How processes with one Ray end, the tests of the command see."""
    if "ray" in sys.modules and hasattr(config, "exit_status") and not hasattr(config, "workerinput"):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(config.exit_status)


@pytest.fixture(scope="module", autouse=True)
def ray_tokens():
    """Each module's Rays are told of tokens by that module alone: Ray leaves them in the environment, and remembers."""
    before = {name: value for name, value in os.environ.items() if name.startswith("RAY_AUTH")}
    yield
    after = {name: value for name, value in os.environ.items() if name.startswith("RAY_AUTH")}
    for name in after.keys() - before.keys():
        del os.environ[name]
    os.environ.update(before)
    if "ray" in sys.modules:
        from ray._raylet import AuthenticationTokenLoader, Config

        Config.initialize("")
        AuthenticationTokenLoader.instance().reset_cache()


@pytest.fixture(scope="session")
def s3_server():
    """A server of the S3 protocol in this process, and the environment that leads any process to it."""
    server_module = pytest.importorskip("moto.server")
    s3fs = pytest.importorskip("s3fs")
    server = server_module.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("AWS_ENDPOINT_URL", "http://{}:{}".format(*server.get_host_and_port()))
        environment.setenv("AWS_ACCESS_KEY_ID", "test")
        environment.setenv("AWS_SECRET_ACCESS_KEY", "test")
        environment.setenv("AWS_DEFAULT_REGION", "us-east-1")
        s3fs.S3FileSystem.clear_instance_cache()  # what was made before knows another endpoint
        yield server
    server.stop()
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture
def s3_bucket(s3_server, request):
    """The address of an empty bucket, such as ``s3://test-1f``; it is gone after the test."""
    import s3fs

    files = s3fs.S3FileSystem(use_listings_cache=False)
    name = f"test-{abs(hash(request.node.nodeid)):x}"
    files.mkdir(name)
    yield f"s3://{name}"
    if files.exists(name):
        files.rm(name, recursive=True)
