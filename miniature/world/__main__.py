from miniature.world.world import main

main()
