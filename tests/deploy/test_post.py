"""Posts and their keepers: real processes, which outlive whoever ordered them."""

import os
import signal
import time

import pytest

from tests.waiting import alive, eventually
from turnwise_deploy.post import Order, Post, PostError, posts

WAITS = ("-c", "import signal, sys, time; signal.signal(15, lambda *_: sys.exit(7)); time.sleep(60)")


@pytest.fixture
def post(tmp_path):
    post = Post(tmp_path / "cluster/part")
    yield post
    assert post.stop(30.0)


def order(tmp_path, arguments=WAITS, **settings):
    return Order(arguments, str(tmp_path / "part.log"), **settings)


def running(post):
    state = post.state()
    return (state.pid or 0) if state is not None else 0


def another(post, pid):
    """The process that runs, unless it is that one."""
    return now if (now := running(post)) != pid else 0


def test_the_process_runs_until_it_is_ordered_to_stop(post, tmp_path):
    post.give(order(tmp_path))
    post.ensure_keeper()
    pid = eventually(lambda: running(post))
    assert alive(pid)
    assert post.is_kept()
    eventually(lambda: time.sleep(0.3) or True)  # its handler is in place
    assert post.stop(30.0)
    assert not alive(pid)
    assert post.state().exit_code == 7


def test_a_process_that_is_killed_is_started_again(post, tmp_path):
    post.give(order(tmp_path))
    post.ensure_keeper()
    first = eventually(lambda: running(post))
    os.kill(first, signal.SIGKILL)
    second = eventually(lambda: another(post, first))
    assert alive(second)
    assert (post.state().starts, post.state().exit_code) == (2, -9)


def test_a_second_keeper_leaves_the_post_to_the_first(post, tmp_path):
    post.give(order(tmp_path))
    post.ensure_keeper()
    pid = eventually(lambda: running(post))
    for _ in range(3):
        post.ensure_keeper()
    post.give(order(tmp_path))
    time.sleep(0.5)
    assert (running(post), post.state().starts) == (pid, 1)


def test_other_arguments_have_the_process_started_anew(post, tmp_path):
    post.give(order(tmp_path))
    post.ensure_keeper()
    first = eventually(lambda: running(post))
    post.give(order(tmp_path, (*WAITS, "other")))
    second = eventually(lambda: another(post, first))
    assert alive(second)
    assert not alive(first)


def test_a_process_whose_lease_nobody_renews_ends_after_its_time(post, tmp_path):
    post.give(order(tmp_path, outlive_s=1.0))
    post.ensure_keeper()
    pid = eventually(lambda: running(post))
    eventually(lambda: not post.is_kept())
    assert not alive(pid)


def test_a_keeper_that_is_killed_takes_its_process_along_and_another_one_starts_it_again(post, tmp_path):
    post.give(order(tmp_path))
    post.ensure_keeper()
    first = eventually(lambda: running(post))
    os.kill(post.state().keeper_pid, signal.SIGKILL)
    eventually(lambda: not alive(first))
    # Again and again, as a lease is renewed: a keeper is still there until the last of its threads has ended.
    second = eventually(lambda: post.ensure_keeper() or another(post, first))
    assert alive(second)


def test_a_post_without_a_keeper_is_stopped_at_once(tmp_path):
    post = Post(tmp_path / "cluster/part")
    assert post.stop(0.0)
    post.give(order(tmp_path))
    assert post.stop(0.0)
    order_given = post.order()
    assert order_given is not None
    assert order_given.stop
    assert [each.name for each in posts(tmp_path)] == ["part"]


def test_an_order_that_cannot_be_read_is_told_with_its_file(tmp_path):
    post = Post(tmp_path / "cluster/part")
    post.give(order(tmp_path))
    (post.folder / "order.json").write_text("[1")
    with pytest.raises(PostError, match=r"order\.json"):
        post.order()
