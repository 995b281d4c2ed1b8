"""Product files without a test file of their own: which one tests them, as they are parts of one thing."""

from __future__ import annotations

TESTED_BY: dict[str, tuple[str, ...]] = {
    "ivshmem_server/elf/test_lookup.py": (
        "ivshmem_server/elf/build.py",
        "ivshmem_server/elf/files.py",
        "ivshmem_server/elf/ctypes/model.py",
        "ivshmem_server/elf/dwarf/debug_info.py",
        "ivshmem_server/elf/dwarf/entries.py",
        "ivshmem_server/elf/dwarf/query.py",
        "ivshmem_server/elf/dwarf/references.py",
        "ivshmem_server/elf/dwarf/scope.py",
    ),
    "ivshmem_server/elf/dwarf/test_search.py": (
        "ivshmem_server/elf/dwarf/mentions.py",
        "ivshmem_server/elf/dwarf/outline.py",
    ),
    "ivshmem_server/test_restart.py": ("ivshmem_server/id_mark.py", "ivshmem_server/id_supply.py"),
    "ivshmem_server/test_memory.py": (
        "ivshmem_server/room.py",
        "protocol/io/file_lock.py",
        "protocol/io/posix_memory.py",
    ),
    "ivshmem_server/peer/test_peer.py": ("ivshmem_server/peer/changes.py",),
    "ivshmem_server/peer/test_faults.py": ("ivshmem_server/peer/connection.py",),
    "ivshmem_server/program/test_commands.py": (
        "ivshmem_server/program/client.py",
        "ivshmem_server/program/client_errors.py",
    ),
    "ivshmem_server/program/test_server.py": (
        "ivshmem_server/program/daemon.py",
        "ivshmem_server/program/server_options.py",
        "protocol/program/signals.py",
    ),
    "qemu/test_print_qemu_args.py": ("ivshmem_server/program/qemu_args.py",),
    "protocol/vhost_user/test_message.py": (
        "protocol/errors.py",
        "protocol/vhost_user/features.py",
        "protocol/vhost_user/messages/backend.py",
        "protocol/vhost_user/messages/device_types.py",
        "protocol/vhost_user/messages/memory.py",
        "protocol/vhost_user/messages/migration.py",
        "protocol/vhost_user/messages/registry.py",
        "protocol/vhost_user/messages/setup.py",
        "protocol/vhost_user/messages/vrings.py",
        "protocol/vhost_user/numbers.py",
    ),
    "protocol/vhost_user/test_responder.py": ("protocol/vhost_user/validation.py",),
    "protocol/program/test_limited.py": ("protocol/program/warnings.py",),
    "test_examples.py": ("protocol/program/run_main.py",),
    "protocol/virtio/test_rings.py": ("protocol/virtio/packed.py", "protocol/virtio/split.py"),
    "protocol/virtio/test_blk.py": ("protocol/virtio/config_space.py",),
    "protocol/virtio/test_bits.py": ("protocol/virtio/features.py",),
    "protocol/virtio/test_input.py": ("protocol/virtio/input_codes.py",),
    "vhost_user/backend/test_exhaustion.py": ("protocol/io/exhaustion.py",),
    "vhost_user/backend/test_migration.py": (
        "vhost_user/backend/device_state.py",
        "vhost_user/backend/dirty_logging.py",
        "vhost_user/backend/handlers/migration.py",
        "vhost_user/backend/inflight.py",
        "vhost_user/memory/inflight_file.py",
    ),
    "vhost_user/backend/test_requests.py": (
        "vhost_user/backend/handlers/device_types.py",
        "vhost_user/backend/handlers/registration.py",
        "vhost_user/backend/handlers/setup.py",
        "vhost_user/backend/state.py",
        "vhost_user/device.py",
        "vhost_user/transport/errors.py",
    ),
    "vhost_user/backend/test_memory.py": (
        "vhost_user/backend/handlers/memory.py",
        "vhost_user/backend/sharing.py",
    ),
    "vhost_user/backend/test_vrings.py": (
        "vhost_user/backend/handlers/vrings.py",
        "vhost_user/backend/vring.py",
    ),
    "vhost_user/ring/test_chain.py": ("vhost_user/buffers.py",),
    "vhost_user/devices/blk/test_requests.py": (
        "vhost_user/devices/blk/executor.py",
        "vhost_user/devices/blk/transfer.py",
    ),
    "vhost_user/devices/blk/test_disk.py": (
        "vhost_user/devices/blk/file.py",
        "vhost_user/devices/blk/parallel_reads.py",
        "vhost_user/devices/blk/sizes.py",
    ),
    "vhost_user/devices/console/test_options.py": ("vhost_user/devices/console/descriptions.py",),
    "vhost_user/devices/console/test_device.py": (
        "vhost_user/devices/console/ports.py",
        "vhost_user/devices/console/simulation.py",
    ),
    "vhost_user/devices/gpio/test_device.py": (
        "vhost_user/devices/gpio/chip.py",
        "vhost_user/devices/gpio/interrupts.py",
        "vhost_user/devices/gpio/requests.py",
    ),
    "vhost_user/devices/i2c/test_device.py": (
        "vhost_user/devices/i2c/buses.py",
        "vhost_user/devices/i2c/requests.py",
    ),
    "vhost_user/devices/i2c/test_chips.py": (
        "vhost_user/devices/i2c/chips/at24.py",
        "vhost_user/devices/i2c/chips/chip.py",
        "vhost_user/devices/i2c/chips/lm75.py",
    ),
    "vhost_user/devices/input/test_simulation.py": (
        "vhost_user/devices/input/keymap.py",
        "vhost_user/devices/input/pointers.py",
        "vhost_user/devices/input/reports.py",
        "vhost_user/devices/input/touch.py",
    ),
    "vhost_user/devices/input/test_options.py": ("vhost_user/devices/input/player.py",),
    "vhost_user/devices/net/test_switch_options.py": (
        "vhost_user/devices/net/addresses.py",
        "vhost_user/devices/net/options.py",
    ),
    "vhost_user/devices/net/ports/test_switch.py": (
        "vhost_user/devices/net/ports/backlog.py",
        "vhost_user/devices/net/ports/frames.py",
        "vhost_user/devices/net/ports/network.py",
        "vhost_user/devices/net/ports/port.py",
    ),
    "vhost_user/devices/net/test_lines.py": (
        "vhost_user/devices/net/ports/impaired.py",
        "vhost_user/devices/net/simulation.py",
    ),
    "vhost_user/devices/net/ports/test_tap.py": (
        "vhost_user/devices/net/ports/tun.py",
        "vhost_user/devices/net/tap_options.py",
    ),
    "vhost_user/devices/vsock/test_guest.py": (
        "vhost_user/devices/vsock/connection_table.py",
        "vhost_user/devices/vsock/stream.py",
    ),
    "vhost_user/devices/vsock/test_device.py": (
        "vhost_user/devices/vsock/ports.py",
        "vhost_user/devices/vsock/siblings.py",
        "vhost_user/devices/vsock/simulation.py",
    ),
    "vhost_user/frontend/test_frontend.py": (
        "vhost_user/frontend/connect.py",
        "vhost_user/frontend/defaults.py",
        "vhost_user/frontend/dirty_pages.py",
        "vhost_user/frontend/handlers.py",
        "vhost_user/frontend/iommu.py",
        "vhost_user/frontend/migration.py",
        "vhost_user/frontend/requests.py",
        "vhost_user/frontend/vrings.py",
    ),
    "vhost_user/frontend/driver_ring/test_driver_ring.py": (
        "vhost_user/frontend/driver_ring/packed.py",
        "vhost_user/frontend/driver_ring/split.py",
    ),
    "vhost_user/memory/test_regions.py": (
        "vhost_user/memory/dirty_log.py",
        "vhost_user/memory/iotlb.py",
        "vhost_user/memory/mapping.py",
    ),
    "vhost_user/ring/test_inflight.py": (
        "vhost_user/ring/inflight_packed.py",
        "vhost_user/ring/inflight_split.py",
        "protocol/vhost_user/inflight.py",
    ),
    "vhost_user/ring/test_restart.py": ("vhost_user/ring/packed_place.py",),
    "vhost_user/ring/test_properties.py": (
        "vhost_user/ring/in_order.py",
        "vhost_user/ring/ring.py",
        "vhost_user/ring/words.py",
    ),
    "vhost_user/simulation/test_simulation.py": ("vhost_user/simulation/calls.py",),
    "vhost_user/simulation/test_control_server.py": ("vhost_user/simulation/control_client.py",),
    "vhost_user/trace/test_format.py": ("vhost_user/trace/events.py",),
    "vhost_user/program/test_main.py": ("protocol/virtio/ids.py",),
}
"""By the test file, under tests/."""
