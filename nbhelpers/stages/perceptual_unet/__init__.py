"""Stage 1: radar nowcasting with a UNet and a perceptual loss."""
