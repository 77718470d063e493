declare module "*.css";
declare module "*.svg" {
  const url: string;
  export default url;
}
/** Set by the build. */
declare const PRESET_NAMES: readonly import("@triattn/protocol").PresetName[];
