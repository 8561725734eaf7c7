"""The keys that Ray and the clouds read in a cluster file's `provider` and `node_config`.

Ray's schema lets any key pass there. A key's own keys stand below it; None: whatever is inside is not looked
at. Sources: Ray 2.60's autoscaler/_private/{local,aws,gcp}, EC2's RunInstances as botocore 1.44 describes it,
and version 1 of Compute Engine's `instances.insert` as google-api-python-client 2.202 does. Tests hold them
against what of these is installed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

Keys = Mapping[str, Any]
"""Key to the `Keys` within, or to None."""


def _keys(names: str | Iterable[str] = (), **nested: Keys) -> Keys:
    return {**dict.fromkeys(names.split() if isinstance(names, str) else names), **nested}


# Read for every provider, by the autoscaler.
_ANY = "type disable_node_updaters disable_launch_config_check foreground_node_launch worker_liveness_check"

PROVIDER: dict[str, Keys] = {
    "local": _keys(f"{_ANY} head_ip worker_ips external_head_ip coordinator_address use_internal_ips"),
    "aws": _keys(
        f"{_ANY} region availability_zone cache_stopped_nodes use_internal_ips",
        security_group=_keys("GroupName IpPermissions"),
        key_pair=_keys("key_name"),
        aws_credentials=_keys("aws_access_key_id aws_secret_access_key aws_session_token"),
        cloudwatch=_keys("agent dashboard alarm"),
    ),
    "gcp": _keys(
        f"{_ANY} region availability_zone project_id cache_stopped_nodes use_internal_ips",
        gcp_credentials=_keys("type credentials"),
    ),
}

REQUIRED = {  # but with a coordinator, which has the addresses
    "local": ("head_ip", "worker_ips"),
    "aws": ("region",),
    "gcp": ("region", "availability_zone", "project_id"),
}

_EBS = (
    "AvailabilityZone AvailabilityZoneId DeleteOnTermination EbsCardIndex Encrypted Iops KmsKeyId OutpostArn "
    "SnapshotId Throughput VolumeInitializationRate VolumeSize VolumeType"
)
_AWS_INTERFACE = (
    "AssociateCarrierIpAddress AssociatePublicIpAddress ConnectionTrackingSpecification DeleteOnTermination "
    "Description DeviceIndex EnaQueueCount EnaSrdSpecification Groups InterfaceType Ipv4PrefixCount "
    "Ipv4Prefixes Ipv6AddressCount Ipv6Addresses Ipv6PrefixCount Ipv6Prefixes NetworkCardIndex "
    "NetworkInterfaceId PrimaryIpv6 PrivateIpAddress PrivateIpAddresses SecondaryPrivateIpAddressCount "
    "SubnetId"
)

AWS_SET_BY_RAY = ("ClientToken", "DryRun", "MaxCount", "MinCount", "SubnetId")
"""Of RunInstances, but not for a cluster file: Ray sets or spoils them."""

AWS_FOR_RAY = ("SubnetIds",)
"""Not of RunInstances: Ray takes a subnet from it for each machine."""

GCP_FOR_RAY = ("sourceInstanceTemplate",)
"""Not in the body of instances.insert: Ray puts it into the address."""

NODE_CONFIG: dict[str, Keys] = {
    "aws": _keys(
        "AdditionalInfo CapacityReservationSpecification CpuOptions CreditSpecification DisableApiStop "
        "DisableApiTermination EbsOptimized ElasticGpuSpecification ElasticInferenceAccelerators "
        "EnablePrimaryIpv6 EnclaveOptions HibernationOptions ImageId InstanceInitiatedShutdownBehavior "
        "InstanceType Ipv6AddressCount Ipv6Addresses KernelId KeyName LicenseSpecifications "
        "MaintenanceOptions NetworkPerformanceOptions Operator PrivateDnsNameOptions PrivateIpAddress "
        "RamdiskId SecondaryInterfaces SecurityGroupIds SecurityGroups SubnetIds UserData",
        BlockDeviceMappings=_keys("DeviceName NoDevice VirtualName", Ebs=_keys(_EBS)),
        IamInstanceProfile=_keys("Arn Name"),
        InstanceMarketOptions=_keys(
            "MarketType",
            SpotOptions=_keys(
                "BlockDurationMinutes InstanceInterruptionBehavior MaxPrice SpotInstanceType ValidUntil"
            ),
        ),
        LaunchTemplate=_keys("LaunchTemplateId LaunchTemplateName Version"),
        MetadataOptions=_keys(
            "HttpEndpoint HttpProtocolIpv6 HttpPutResponseHopLimit HttpTokens InstanceMetadataTags"
        ),
        Monitoring=_keys("Enabled MetricCategoryIds"),
        NetworkInterfaces=_keys(_AWS_INTERFACE),
        Placement=_keys(
            "Affinity AvailabilityZone AvailabilityZoneId GroupId GroupName HostId HostResourceGroupArn "
            "PartitionNumber SpreadDomain Tenancy"
        ),
        TagSpecifications=_keys("ResourceType", Tags=_keys("Key Value")),
    ),
    "gcp": _keys(
        "advancedMachineFeatures canIpForward confidentialInstanceConfig deletionProtection description "
        "displayDevice guestAccelerators hostname instanceEncryptionKey keyRevocationActionType labels "
        "localSsdEncryptionMode machineType metadata minCpuPlatform networkPerformanceConfig params "
        "privateIpv6GoogleAccess reservationAffinity resourcePolicies shieldedInstanceConfig "
        "shieldedInstanceIntegrityPolicy "
        "sourceInstanceTemplate sourceMachineImage sourceMachineImageEncryptionKey startRestricted "
        "workloadIdentityConfig",
        disks=_keys(
            "architecture autoDelete boot deviceName diskEncryptionKey diskSizeGb forceAttach "
            "guestOsFeatures index interface kind licenses mode savedState shieldedInstanceInitialState "
            "source type",
            initializeParams=_keys(
                "architecture description diskName diskSizeGb diskType enableConfidentialCompute labels "
                "licenses onUpdateAction provisionedIops provisionedThroughput replicaZones "
                "resourceManagerTags resourcePolicies sourceImage sourceImageEncryptionKey "
                "sourceSnapshot sourceSnapshotEncryptionKey storagePool"
            ),
        ),
        networkInterfaces=_keys(
            "aliasIpRanges aliasIpv6Ranges enableVpcScopedDns igmpQuery internalIpv6PrefixLength "
            "ipv6AccessConfigs ipv6AccessType ipv6Address kind name network networkAttachment networkIP "
            "nicType parentNicName queueCount serviceClassId stackType subnetwork vlan",
            accessConfigs=_keys(
                "externalIpv6 externalIpv6PrefixLength kind name natIP networkTier publicPtrDomainName "
                "securityPolicy setPublicPtr type"
            ),
        ),
        scheduling=_keys(
            "automaticRestart availabilityDomain exposeHostTopology gracefulShutdown hostErrorTimeoutSeconds "
            "instanceTerminationAction localSsdRecoveryTimeout locationHint maxRunDuration minNodeCpus "
            "nodeAffinities onHostMaintenance onInstanceStopAction preemptible preemptionNoticeDuration "
            "protectionTier provisioningModel skipGuestOsShutdown terminationTime"
        ),
        serviceAccounts=_keys("email scopes"),
        tags=_keys("items"),
    ),
}
