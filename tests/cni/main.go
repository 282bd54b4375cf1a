// Command runtime calls CNI plug-ins as container runtimes do: through libcni.
//
//	runtime add|check|del|validate|gc|status FILE NETNS CONTAINER
//
// FILE is a .conf or a .conflist. CNI_PATH and CNI_CACHE name directories; CNI_ARGS holds K=V;K=V, CAPABILITIES a JSON object.
// What Debian's libcni does not know yet (GC, STATUS, everything of version 1.1.0) goes through its way of running a
// plug-in, one plug-in after the other.
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/invoke"
)

var runs = context.Background()

func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func load(file string) *libcni.NetworkConfigList {
	if strings.HasSuffix(file, ".conflist") {
		list, err := libcni.ConfListFromFile(file)
		check(err)
		return list
	}
	one, err := libcni.ConfFromFile(file)
	check(err)
	list, err := libcni.ConfListFromConf(one)
	check(err)
	return list
}

// raw gives a command to every plug-in of a list and prints what each said.
func raw(command string, list *libcni.NetworkConfigList, rt *libcni.RuntimeConf, path string) {
	for _, plugin := range list.Plugins {
		file, err := invoke.FindInPath(plugin.Network.Type, filepath.SplitList(path))
		check(err)
		var config map[string]interface{}
		check(json.Unmarshal(plugin.Bytes, &config))
		config["name"], config["cniVersion"] = list.Name, list.CNIVersion
		for key, value := range rt.CapabilityArgs {
			config[key] = value
		}
		stdin, err := json.Marshal(config)
		check(err)
		args := &invoke.Args{Command: command, ContainerID: rt.ContainerID, NetNS: rt.NetNS, IfName: rt.IfName, Path: path}
		out, err := (&invoke.RawExec{Stderr: os.Stderr}).ExecPlugin(runs, file, stdin, args.AsEnv())
		check(err)
		fmt.Print(string(bytes.TrimSpace(out)))
	}
}

func main() {
	path := os.Getenv("CNI_PATH")
	cni := libcni.NewCNIConfigWithCacheDir(filepath.SplitList(path), os.Getenv("CNI_CACHE"), nil)
	list := load(os.Args[2])
	rt := &libcni.RuntimeConf{NetNS: os.Args[3], ContainerID: os.Args[4], IfName: "eth0"}
	for _, pair := range strings.FieldsFunc(os.Getenv("CNI_ARGS"), func(r rune) bool { return r == ';' }) {
		key, value, _ := strings.Cut(pair, "=")
		rt.Args = append(rt.Args, [2]string{key, value})
	}
	if text := os.Getenv("CAPABILITIES"); text != "" {
		check(json.Unmarshal([]byte(text), &rt.CapabilityArgs))
	}
	switch command := os.Args[1]; {
	case command == "validate":
		_, err := cni.ValidateNetworkList(runs, list)
		check(err)
	case command == "gc" || command == "status" || list.CNIVersion == "1.1.0":
		raw(strings.ToUpper(command), list, rt, path)
	case command == "add":
		result, err := cni.AddNetworkList(runs, list, rt)
		check(err)
		check(result.Print())
	case command == "check":
		check(cni.CheckNetworkList(runs, list, rt))
	case command == "del":
		check(cni.DelNetworkList(runs, list, rt))
	}
}
