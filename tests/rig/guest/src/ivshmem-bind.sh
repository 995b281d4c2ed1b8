#!/bin/sh
# Hands the machine's ivshmem devices to vfio-pci, and prints their addresses.
set -e
modprobe vfio-pci
modprobe vfio_iommu_type1
for uevent in $(grep -l PCI_ID=1AF4:1110 /sys/bus/pci/devices/*/uevent); do
    cd "${uevent%/uevent}"
    address=${PWD##*/}
    echo vfio-pci >driver_override
    echo "$address" >/sys/bus/pci/drivers_probe
    if [ ! -e driver ]; then
        echo "vfio-pci refuses $address: has the machine an IOMMU, and the kernel intel_iommu=on?" >&2
        exit 1
    fi
    echo "$address"
done
