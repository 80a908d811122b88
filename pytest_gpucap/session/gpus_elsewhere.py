"""The GPUs of a server behind a URL, as DCGM exporters show them: which they are, and that they are of the class."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_gpucap.engines.errors import EndpointError
from pytest_gpucap.engines.protocol import Server
from pytest_gpucap.engines.url import ExternalServer
from pytest_gpucap.gpu.classes import GpuClass
from pytest_gpucap.gpu.device import Device
from pytest_gpucap.gpu.inventory import class_of
from pytest_gpucap.options.table import Options
from pytest_gpucap.session.placement import own_classes, pages_beside

if TYPE_CHECKING:
    from pytest_gpucap.telemetry.dcgm import DcgmExporter


def gpus_elsewhere(
    server: Server, declared: GpuClass | None, options: Options
) -> tuple[tuple[DcgmExporter, ...], GpuClass | None]:
    """The exporters that show the GPUs behind ``--gpucap-url``; none where nobody names one.

    The server's own page of metrics is read from now on too, where it has one and no other is named.

    Args:
        server: behind the URL.
        declared: its class; None: that of the GPUs that are shown.
        options: the session's.

    Returns:
        The exporters, and the class of the GPUs.

    Raises:
        EndpointError: one line, if a page cannot be read, does not show which GPUs are meant, or shows GPUs of another
            class than the declared one.
    """
    if options.url is None or not options.dcgm_url:
        return (), declared
    from pytest_gpucap.telemetry.dcgm import DcgmExporter, found_devices

    exporters = [DcgmExporter(page, options.dcgm_match) for page in pages_beside(options.dcgm_url, options)]
    found_devices(exporters, options.dcgm_match)
    exporters = [exporter for exporter in exporters if exporter.devices]
    devices = [device for exporter in exporters for device in exporter.devices]
    if isinstance(server, ExternalServer) and not server.pages:
        server.find_metrics()
    return tuple(exporters), checked_class(devices, declared, own_classes(options))


def checked_class(devices: list[Device], declared: GpuClass | None, own: tuple[GpuClass, ...]) -> GpuClass:
    """The class of all these devices.

    Args:
        devices: at least one.
        declared: what they must be; None: anything.
        own: classes of a file or a plugin.

    Raises:
        EndpointError: if they are of several classes, or of another one.
    """
    classes = {each.name: each for each in (class_of(device, own) for device in devices)}
    seen = ", ".join(dict.fromkeys(device.name for device in devices))
    if len(classes) > 1:
        raise EndpointError(
            f"--gpucap-dcgm-url: the GPUs are of several classes ({', '.join(classes)}): name those of the server with "
            "--gpucap-dcgm-match"
        )
    (found,) = classes.values()
    if declared is not None and found.name != declared.name:
        raise EndpointError(
            f"--gpu-class: {declared.name} was asked for, and the DCGM exporter shows {seen} (class {found.name}) "
            f"behind --gpucap-url: say --gpu-class {found.name}, or mend --gpucap-dcgm-match"
        )
    return found
