"""The trainer's end of the stream to the service."""

import threading

import pytest

from turnwise_actor.access.client_access import LOCAL_TOKEN, ClientAccess
from turnwise_learner.trainer.service_link import ServiceLink, hello


@pytest.fixture
def wake():
    return threading.Event()


@pytest.fixture
def connect(config, wake):
    links = []

    def connect(service, cause="start"):
        greeting = hello(service.journal.journal_id, resumed=cause == "resume")
        access = ClientAccess(token_file=config.data / LOCAL_TOKEN)
        links.append(ServiceLink(service.local_address, access, greeting, wake))
        return links[-1]

    yield connect
    for link in links:
        link.close()


async def test_growth_of_the_journal_wakes_a_trainer_that_waits_and_no_other(
    service, connect, wake, send, make_facts, eventually
):
    link = connect(service)
    await eventually(wake.is_set)  # the welcome
    wake.clear()
    await send(make_facts("a", 4))
    assert not wake.is_set()
    link.await_growth(0)
    await eventually(wake.is_set)
    wake.clear()
    link.await_growth(5)
    link.await_growth(5)
    await send(make_facts("b", 4))
    await eventually(wake.is_set)


async def test_a_trainer_that_waits_says_so_again_on_a_new_stream(
    service, connect, wake, send, make_facts, eventually
):
    link = connect(service)
    await eventually(wake.is_set)
    link.await_growth(0)
    session = service._link._session
    await eventually(lambda: session.waits_after == 0)
    session.superseded.set()  # ends the stream
    await eventually(lambda: service._link._session not in (None, session))
    await eventually(lambda: service._link._session.waits_after == 0)
    wake.clear()
    await send(make_facts("a", 4))
    await eventually(wake.is_set)
