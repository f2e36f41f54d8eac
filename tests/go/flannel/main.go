// flanneld with the backends vxlan and udp: flannel's own main registers a backend whose cloud SDK cannot be had.
// What it leaves out besides are flags; the order of the steps is that of flannel's main.
package main

import (
	"context"
	"flag"
	"log"
	"os/signal"
	"sync"
	"syscall"

	"github.com/flannel-io/flannel/pkg/backend"
	_ "github.com/flannel-io/flannel/pkg/backend/udp"
	_ "github.com/flannel-io/flannel/pkg/backend/vxlan"
	"github.com/flannel-io/flannel/pkg/ip"
	"github.com/flannel-io/flannel/pkg/ipmatch"
	"github.com/flannel-io/flannel/pkg/subnet"
	"github.com/flannel-io/flannel/pkg/subnet/etcd"
	"github.com/flannel-io/flannel/pkg/subnet/kube"
	"github.com/flannel-io/flannel/pkg/trafficmngr/nftables"
)

var (
	kubeconfig = flag.String("kubeconfig", "", "Nodes of this cluster, NODE_NAME among them; without it leases in etcd")
	etcdURL    = flag.String("etcd", "http://127.0.0.1:2379", "where etcd is")
	netConf    = flag.String("net-conf", "/run/flannel/net-conf.json", "network configuration, with --kubeconfig")
	subnetFile = flag.String("subnet-file", "/run/flannel/subnet.env", "where the lease is written")
	iface      = flag.String("iface", "eth0", "the underlay")
	masquerade = flag.Bool("masquerade", false, "masquerade what leaves the network")
)

func main() {
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	var wg sync.WaitGroup

	manager, err := subnets(ctx)
	check(err)
	config, err := manager.GetNetworkConfig(ctx)
	check(err)
	stack, err := ipmatch.GetIPFamily(config.EnableIPv4, config.EnableIPv6)
	check(err)
	underlay, err := ipmatch.LookupExtIface(*iface, "", "", stack, ipmatch.PublicIPOpts{})
	check(err)
	chosen, err := backend.NewManager(ctx, manager, underlay).GetBackend(config.BackendType)
	check(err)
	network, err := chosen.RegisterNetwork(ctx, &wg, config)
	check(err)
	lease := network.Lease()

	rules := &nftables.NFTablesManager{}
	check(rules.Init(ctx))
	if *masquerade {
		check(rules.SetupAndEnsureMasqRules(ctx, config.Network, ip.IP4Net{}, ip.IP4Net{},
			config.IPv6Network, ip.IP6Net{}, ip.IP6Net{}, lease, 5, false))
	}
	rules.SetupAndEnsureForwardRules(ctx, config.Network, config.IPv6Network, 5)
	check(manager.HandleSubnetFile(*subnetFile, config, *masquerade, lease.Subnet, lease.IPv6Subnet, network.MTU()))
	log.Print("flannel is ready")

	wg.Add(1)
	go func() {
		network.Run(ctx)
		wg.Done()
	}()
	check(manager.CompleteLease(ctx, lease, &wg))
	wg.Wait()
}

func subnets(ctx context.Context) (subnet.Manager, error) {
	if *kubeconfig != "" {
		return kube.NewSubnetManager(ctx, "", *kubeconfig, "flannel.alpha.coreos.com", *netConf, true)
	}
	config := &etcd.EtcdConfig{Endpoints: []string{*etcdURL}, Prefix: "/coreos.com/network"}
	return etcd.NewLocalManager(ctx, config, ip.IP4Net{}, ip.IP6Net{}, 60)
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
